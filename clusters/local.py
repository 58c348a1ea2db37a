"""Run jobs on this machine: start a Ray head that outlives the command, and end it when no job needs it."""

from __future__ import annotations

import os
import shlex
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import psutil
from pydantic import Field

from fewstep.clusters.jobs_api import JobsCluster, connect
from fewstep.clusters.schema import ENDED, ClusterError, Job, JobState
from fewstep.clusters.this_machine import alone, state_folder, token_file

if TYPE_CHECKING:
    from ray.job_submission import JobSubmissionClient

STARTS_S = 90.0
ENDS_S = 20.0


class Local(JobsCluster):
    """This machine; a Ray head starts when a job needs it and ends once no job is left."""

    kind: Literal["local"] = Field(description="The kind of cluster.")
    outputs: str = Field(
        default_factory=os.getcwd,
        description="An absolute folder that a recipe's relative `output` is put under; by default the current folder.",
    )
    install: Literal[False] = Field(
        default=False, description="Always false: jobs run in the environment that `fewstep` itself runs in."
    )
    port: int = Field(default=8265, gt=0, lt=65536, description="The port of the dashboard, on loopback alone.")
    num_cpus: int = Field(default=0, ge=0, description="CPUs that jobs may use; 0 is all.")
    num_gpus: int = Field(default=0, ge=0, description="GPUs that jobs may use; 0 is all.")
    temp_dir: str = Field(
        default="/tmp/fewstep-ray", description="A folder for Ray's logs and sockets; keep its path short."
    )

    @property
    def python(self) -> str:
        """The interpreter that fewstep itself runs in."""
        return sys.executable

    @property
    def address(self) -> str:
        """The URL of the dashboard."""
        return f"http://127.0.0.1:{self.port}"

    def environment(self) -> dict[str, str]:
        """Variables that the head is started with, besides those of the submitting shell; its workers inherit both."""
        return {
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN_PATH": str(token_file("local")),
            "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": "0",  # there is nowhere to move to
        }

    def command(self) -> list[str]:
        """The command that starts the head."""
        sizes = [f"--{name.replace('_', '-')}={n}" for name in ("num_cpus", "num_gpus") if (n := getattr(self, name))]
        loopback = ["--dashboard-host=127.0.0.1", f"--dashboard-port={self.port}"]
        free_ports = [
            f"--{name}=0" for name in ("port", "dashboard-agent-listen-port", "min-worker-port", "max-worker-port")
        ]
        storage = [f"--temp-dir={self.temp_dir}", f"--object-store-memory={200 * 1024**2}"]
        ray = [sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block", "--disable-usage-stats"]
        return [*ray, *loopback, *free_ports, *storage, *sizes]

    def preview(self, job: Job) -> str:
        """The command that starts the head, then the request."""
        variables = [f"{name}={value}" for name, value in self.environment().items()]
        return f"{shlex.join([*variables, *self.command()])}\n{super().preview(job)}"

    def prepare(self, job: Job) -> None:
        """Start the head, unless it runs."""
        super().prepare(job)
        with alone(self._pid_file.with_suffix(".lock")):
            if not self._head():
                self._start()

    @contextmanager
    def client(self) -> Iterator[JobSubmissionClient]:
        """With the token that the head was started with."""
        yield connect(self.address, token_file("local").read_text())

    def find(self, job: Job) -> JobState | None:
        """The state that the dashboard reports, or None once the head has ended."""
        return super().find(job) if self._head() else None

    def logs(self, job: Job, follow: bool) -> Iterator[str]:
        """From the file that Ray left, once the head has ended."""
        if self._head():
            yield from super().logs(job, follow)
        else:
            for file in sorted(Path(self.temp_dir).glob(f"session_2*/logs/job-driver-{job.id}.log"))[-1:]:
                yield file.read_text()

    def stop(self, job: Job) -> None:
        """Nothing to do once the head has ended."""
        if self._head():
            super().stop(job)

    def release(self) -> str:
        """End the head by its pid, with all that it started, unless a job still needs it."""
        head = self._head()
        if not head:
            return ""
        try:
            with self.client() as client:
                left = [details.submission_id for details in client.list_jobs() if details.status.value not in ENDED]
        except ClusterError:  # it never came up
            left = []
        if left:
            return f"the Ray head (pid {head.pid}) stays for {', '.join(filter(None, left))}"
        started = head.children(recursive=True)
        head.terminate()
        for process in psutil.wait_procs([head, *started], timeout=ENDS_S)[1]:
            process.kill()
        self._pid_file.unlink(missing_ok=True)
        return ""

    @property
    def _pid_file(self) -> Path:
        return state_folder() / f"local-{self.port}.pid"

    def _head(self) -> psutil.Process | None:
        """The head that was started here on this port, if it lives."""
        if not self._pid_file.exists():
            return None
        pid, born = self._pid_file.read_text().split()
        try:
            process = psutil.Process(int(pid))
            alive = process.create_time() == float(born) and process.status() != psutil.STATUS_ZOMBIE
        except psutil.NoSuchProcess:
            return None
        return process if alive else None

    def _start(self) -> None:
        self._check_port()
        log = Path(self.temp_dir) / "head.log"
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("wb") as stream:
            head = subprocess.Popen(
                self.command(),
                env=os.environ | self.environment(),
                stdin=subprocess.DEVNULL,
                stdout=stream,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self._pid_file.write_text(f"{head.pid} {psutil.Process(head.pid).create_time()}")
        ends = time.monotonic() + STARTS_S
        while head.poll() is None and time.monotonic() < ends:
            try:
                with self.client():
                    return
            except ClusterError:
                time.sleep(0.5)
        self.release()
        raise ClusterError(f"local: the Ray head did not start on port {self.port}; {log} says why")

    def _check_port(self) -> None:
        """Refuse a port that is in use, where the job might go to somebody else's Ray."""
        try:
            socket.create_server(("127.0.0.1", self.port)).close()
        except OSError as error:
            raise ClusterError(
                f"port: {self.port} is not free ({error.strerror}); give another one in a cluster file"
            ) from None
