"""Submit jobs through a Ray dashboard, by the Ray Jobs API."""

from __future__ import annotations

import asyncio
import ipaddress
import json
import logging
import os
import shlex
import tempfile
import time
from abc import abstractmethod
from collections.abc import AsyncIterator, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import requests
from pydantic import Field

from fewstep.clusters.schema import Cluster, ClusterError, Job, JobState, ray_version

if TYPE_CHECKING:
    from ray.job_submission import JobSubmissionClient

ANSWERS_S = 4.0  # a dashboard that has not answered by then is not there
READY_S = 60.0  # for a head that already answers to accept a job
CARRIES = 100 * 1024**2  # bytes that a dashboard takes for one job
RAY_OVERRIDES = ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS")  # Ray prefers them to an address that it gets as an argument


class JobsCluster(Cluster):
    """A cluster that takes jobs through its Ray dashboard."""

    install: bool = Field(
        default=True,
        description="Install the packages of this machine, at their versions, for each job; false if the "
        "nodes have them.",
    )

    @abstractmethod
    def client(self) -> AbstractContextManager[JobSubmissionClient]:
        """A connection to the dashboard."""

    def request(self, job: Job, working_dir: str | list[str]) -> dict[str, object]:
        """The body of the request to the Jobs API, without the bundle."""
        packages = {"pip": {"packages": list(job.pins)}} if self.install else {}
        return {
            "submission_id": job.id,
            "entrypoint": shlex.join(job.command(self.python)),
            "metadata": {"fewstep_digest": job.digest},
            "runtime_env": {"env_vars": dict(self.env_vars), **packages, "working_dir": working_dir},
        }

    @property
    def python(self) -> str:
        """The interpreter that runs a job."""
        return "python"

    def preview(self, job: Job) -> str:
        """The request, with the names of the bundle's files for `working_dir`."""
        return json.dumps(self.request(job, list(job.bundle.files)), indent=1)

    def prepare(self, job: Job) -> None:
        """Raises ClusterError for files that Ray would not carry."""
        if job.bundle.size > CARRIES:
            raise ClusterError(
                f"the recipe's files are {job.bundle.size / 1024**2:.0f} MiB and Ray takes {CARRIES // 1024**2}; "
                "name the teacher by `hub` and `revision`, or prompts and images by a smaller file"
            )

    def submit(self, job: Job) -> None:
        """Hand over the bundle and the request."""
        with tempfile.TemporaryDirectory() as folder, self.client() as client:
            job.bundle.write(Path(folder))
            _send(client, job, self.request(job, folder))

    def find(self, job: Job) -> JobState | None:
        """Ask the dashboard."""
        with self.client() as client:
            return _state(client, job)

    def logs(self, job: Job, follow: bool) -> Iterator[str]:
        """What the job's driver printed, from the dashboard."""
        with self.client() as client:
            if follow:
                yield from _blocking(client.tail_job_logs(job.id))
            else:
                yield client.get_job_logs(job.id)

    def stop(self, job: Job) -> None:
        """Terminate the driver; Ray ends its actors."""
        with self.client() as client:
            client.stop_job(job.id)


def connect(
    address: str, token: str, *, pinned: bool = False, allow_unauthenticated: bool = False
) -> JobSubmissionClient:
    """A client of the dashboard at an address, within two times ANSWERS_S.

    Raises ClusterError where no Ray listens, where the token is wrong, where a dashboard that others can reach asks
    nobody for one, and where Ray has another version than the pinned packages.
    """
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    bare = _get(f"{address}/api/version", {})
    if bare.status_code == 200 and not (allow_unauthenticated or _is_loopback(address)):
        raise ClusterError(
            f"address: the dashboard at {address} runs anybody's code, it asks for no token; start Ray with "
            "RAY_AUTH_MODE=token, or set allow_unauthenticated: true where the network keeps others out"
        )
    answer = _get(f"{address}/api/version", headers)
    if answer.status_code in (401, 403):
        raise ClusterError(f"token_file: the dashboard at {address} does not take this token ({answer.text})")
    if answer.status_code != 200 or "ray_version" not in answer.text:
        raise ClusterError(f"address: what answers at {address} is no Ray dashboard")
    if pinned and (there := answer.json()["ray_version"]) != ray_version():
        raise ClusterError(
            f"install: the cluster runs Ray {there}, and the packages are pinned to {ray_version()}; start it with "
            "that version, or set install: false where its nodes have all that fewstep needs"
        )
    for name in RAY_OVERRIDES:
        os.environ.pop(name, None)
    for handler in logging.getLogger("ray").handlers:
        handler.setLevel(logging.ERROR)  # fewstep says itself what a person should know
    from ray.job_submission import JobSubmissionClient

    return JobSubmissionClient(address, headers=headers)


def _send(client: JobSubmissionClient, job: Job, request: dict) -> None:
    """Submit; a head that has only just started is given time to be ready."""
    ends = time.monotonic() + READY_S
    while True:
        try:
            client.submit_job(**request)
            return
        except RuntimeError as error:
            if _state(client, job):  # another command was faster with the same job
                return
            if "No available agent" not in str(error) or time.monotonic() > ends:
                raise ClusterError(f"Ray refused the job: {error}") from None
            time.sleep(1.0)


def _get(url: str, headers: dict[str, str]) -> requests.Response:
    try:
        return requests.get(url, headers=headers, timeout=ANSWERS_S)
    except requests.RequestException as error:
        raise ClusterError(
            f"address: no Ray dashboard answers at {url.removesuffix('/api/version')} ({type(error).__name__}); "
            "give the one that `ray start` printed, like http://127.0.0.1:8265"
        ) from None


def _is_loopback(address: str) -> bool:
    host = urlsplit(address).hostname or ""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _state(client: JobSubmissionClient, job: Job) -> JobState | None:
    for details in client.list_jobs():
        if details.submission_id == job.id:
            return JobState(details.status.value, (details.metadata or {}).get("fewstep_digest", ""))
    return None


def _blocking(pieces: AsyncIterator[str]) -> Iterator[str]:
    """The pieces of an asynchronous iterator, each waited for."""
    loop = asyncio.new_event_loop()
    try:
        while True:
            yield loop.run_until_complete(anext(pieces))
    except StopAsyncIteration:
        return
    finally:
        loop.close()
