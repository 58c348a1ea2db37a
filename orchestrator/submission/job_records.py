"""Keeps what this machine knows of jobs submitted from it: one small file each, in the user's state folder."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from fewstep.clusters import KINDS, Cluster, Job
from fewstep.clusters.this_machine import state_folder
from fewstep.orchestrator.errors import BadInput, nearest
from fewstep.orchestrator.files import write_whole
from fewstep.orchestrator.recipe.section import Json, sentence


@dataclass(frozen=True)
class Record:
    """One job. After a failure the next attempt has an id of its own on the cluster."""

    id: str
    verb: str
    recipe: str  # its name
    digest: str  # of verb, recipe and inputs
    cluster: Json  # its file, defaults filled in
    output: str  # on the cluster
    submitted: str = ""  # when
    attempt: int = 1
    status: str = ""  # when it was last asked for

    @property
    def job(self) -> Job:
        """The job as its cluster knows it."""
        name = self.id if self.attempt == 1 else f"{self.id}-{self.attempt}"
        return Job(name, self.digest, folder() / self.id)

    def write(self) -> None:
        """Keep it."""
        write_whole(folder() / self.id / "job.json", json.dumps(dataclasses.asdict(self), indent=1))


def folder() -> Path:
    """Where all records lie."""
    return state_folder() / "jobs"


def records() -> list[Record]:
    """All jobs, the newest first."""
    all_records = [Record(**json.loads(file.read_text())) for file in folder().glob("*/job.json")]
    return sorted(all_records, key=lambda record: record.submitted, reverse=True)


def record_of(id: str) -> Record:
    """One job. Raises BadInput where none has this id."""
    by_id = {record.id: record for record in records()}
    if id not in by_id:
        raise BadInput(f"no job {id!r} was submitted from here{nearest(id, by_id)}; `fewstep jobs list` names them")
    return by_id[id]


def cluster_of(data: Json, where: str) -> Cluster:
    """A cluster from what its file says. Raises BadInput."""
    kind = str(data.get("kind", ""))
    if kind not in KINDS:
        raise BadInput(f"{where}: kind {kind!r} is not one of {', '.join(KINDS)}{nearest(kind, KINDS)}")
    try:
        return KINDS[kind].model_validate(data)
    except ValidationError as error:
        raise BadInput(f"{where}: {sentence(error, KINDS[kind])}") from None
