"""Define what every kind of cluster has: a strict schema, and the ways to submit, find, follow and stop a job."""

from __future__ import annotations

import importlib.metadata
import re
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

from fewstep.clusters.bundle import Bundle

Status = Literal["PENDING", "RUNNING", "STOPPED", "SUCCEEDED", "FAILED"]  # as Ray's Jobs API has them
ENDED: tuple[Status, ...] = ("STOPPED", "SUCCEEDED", "FAILED")
SECRET = re.compile(r"(^|_)(TOKEN|(API)?KEY|KEY_ID|PASSWORD|PASSWD|PASSPHRASE|CREDENTIALS?)$|SECRET", re.IGNORECASE)


def ray_version() -> str:
    """The version of Ray that is installed here, without importing it."""
    return importlib.metadata.version("ray")


class ClusterError(ValueError):
    """A cluster cannot be used as its file says: one sentence with the mend."""


@dataclass(frozen=True)
class Job:
    """One `fewstep` command, as it is handed to a cluster."""

    id: str  # no two jobs of a cluster share one
    digest: str  # of verb, recipe and inputs
    folder: Path  # on this machine, for what a kind of cluster writes for itself
    arguments: tuple[str, ...] = ()  # where outputs go, then a verb and the recipe in the bundle
    bundle: Bundle = Bundle({})
    pins: tuple[str, ...] = ()  # packages, as name==version

    def command(self, python: str = "python") -> tuple[str, ...]:
        """The command to run in the folder that holds the bundle."""
        return (python, "-m", "fewstep.orchestrator.cli.cluster_job", *self.arguments)


@dataclass(frozen=True)
class JobState:
    """What a cluster reports of a job."""

    status: Status
    digest: str


class ClusterSection(BaseModel):
    """A section of a cluster file or the file itself; unknown keys are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Cluster(ClusterSection, ABC):
    """A place where jobs run. Every method raises ClusterError for what cannot be done there."""

    outputs: str = Field(
        description="An absolute folder, the same on every node, that a recipe's relative `output` is put under."
    )
    env_vars: Mapping[str, str] = Field(
        default={},
        description="Environment variables of the job; they are stored in the clear, so secrets are refused.",
    )

    @field_validator("outputs")
    @classmethod
    def _absolute(cls, value: str) -> str:
        if not value.startswith("/"):
            raise ValueError(f"must be an absolute folder that every node sees, like /mnt/fewstep; got {value!r}")
        return value

    @field_validator("env_vars")
    @classmethod
    def _no_secret(cls, value: Mapping[str, str]) -> Mapping[str, str]:
        for name, text in value.items():
            if not name.isidentifier():
                raise ValueError(f"{name!r} is no name of a variable")
            if SECRET.search(name) or re.search(r"://[^/]*:[^/]*@", text):
                raise ValueError(
                    f"{name} looks like a secret and would be stored in the clear with the job; name it under "
                    "`secrets` (kuberay, slurm), or set it on the nodes"
                )
        return value

    @abstractmethod
    def preview(self, job: Job) -> str:
        """Exactly what would be sent or applied, as text."""

    @abstractmethod
    def prepare(self, job: Job) -> None:
        """Start, write or look for what is needed before the cluster can be asked about this job or handed it."""

    @abstractmethod
    def submit(self, job: Job) -> None:
        """Hand the job over."""

    @abstractmethod
    def find(self, job: Job) -> JobState | None:
        """The state of the job with this id, or None where there is none."""

    @abstractmethod
    def logs(self, job: Job, follow: bool) -> Iterator[str]:
        """What the job has printed, in pieces, and with `follow` what it prints until it ends."""

    @abstractmethod
    def stop(self, job: Job) -> None:
        """End the job."""

    def release(self) -> str:
        """End what no job needs any more; return a sentence on what is left running, or ""."""
        return ""
