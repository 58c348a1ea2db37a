"""Submit to a Ray cluster that is running already, by its dashboard's address and token."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Literal
from urllib.parse import urlsplit

from pydantic import Field, field_validator

from fewstep.clusters.jobs_api import JobsCluster, connect
from fewstep.clusters.schema import ClusterError

if TYPE_CHECKING:
    from ray.job_submission import JobSubmissionClient


class Ray(JobsCluster):
    """A Ray cluster that is running already."""

    kind: Literal["ray"] = Field(description="The kind of cluster.")
    address: str = Field(description="The URL of the cluster's dashboard, like http://127.0.0.1:8265.")
    token_file: str = Field(
        default="~/.ray/auth_token",
        description='The file with the cluster\'s token; "" is for a cluster without tokens.',
    )
    allow_unauthenticated: bool = Field(
        default=False,
        description="Send jobs even to a dashboard that others can reach and that asks for no token.",
    )

    @field_validator("address")
    @classmethod
    def _url(cls, value: str) -> str:
        if not value.startswith(("http://", "https://")):
            raise ValueError(f"must be the dashboard's, like http://127.0.0.1:8265; got {value!r}")
        if "@" in urlsplit(value).netloc:
            raise ValueError("holds a name or a password, which would be stored in the clear; name a `token_file`")
        return value.rstrip("/")

    @contextmanager
    def client(self) -> Iterator[JobSubmissionClient]:
        """A client that sends the token in `token_file`."""
        file = Path(self.token_file).expanduser()
        if self.token_file and not file.is_file():
            raise ClusterError(f'token_file: there is no file {file}; "" is for a cluster without tokens')
        token = file.read_text().strip() if self.token_file else ""
        yield connect(self.address, token, pinned=self.install, allow_unauthenticated=self.allow_unauthenticated)
