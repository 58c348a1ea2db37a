"""This machine: a Ray head of our own, its dashboard on loopback, which outlives the command that started it."""

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
from typing import Literal

import psutil
from pydantic import Field
from ray.job_submission import JobSubmissionClient

from fewstep.clusters.jobs_api import JobsCluster, connect
from fewstep.clusters.schema import ENDED, ClusterError, Job, JobState
from fewstep.clusters.state import alone, state_folder, token_file

STARTS_S = 90.0
ENDS_S = 20.0


class Local(JobsCluster):
    """A head that is started when a job needs it, and ended once no job is left."""

    kind: Literal["local"]
    outputs: str = Field(default_factory=os.getcwd)
    install: Literal[False] = False  # it runs in this very environment
    port: int = Field(default=8265, gt=0, lt=65536)  # of the dashboard
    num_cpus: int = Field(default=0, ge=0)  # 0 is all
    num_gpus: int = Field(default=0, ge=0)  # 0 is all
    temp_dir: str = "/tmp/fewstep-ray"  # Ray's logs; a short path, sockets lie under it

    @property
    def python(self) -> str:
        """This interpreter."""
        return sys.executable

    @property
    def address(self) -> str:
        """Of the dashboard."""
        return f"http://127.0.0.1:{self.port}"

    def environment(self) -> dict[str, str]:
        """Of the head; its workers inherit it, and so what the submitting shell has set."""
        return {
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN_PATH": str(token_file("local")),
            "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": "0",  # there is nowhere to move to
        }

    def command(self) -> list[str]:
        """What starts the head."""
        sizes = [f"--{name.replace('_', '-')}={n}" for name in ("num_cpus", "num_gpus") if (n := getattr(self, name))]
        loopback = ["--dashboard-host=127.0.0.1", f"--dashboard-port={self.port}"]
        free_ports = [
            f"--{name}=0" for name in ("port", "dashboard-agent-listen-port", "min-worker-port", "max-worker-port")
        ]
        kept = [f"--temp-dir={self.temp_dir}", f"--object-store-memory={200 * 1024**2}"]
        ray = [sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block", "--disable-usage-stats"]
        return [*ray, *loopback, *free_ports, *kept, *sizes]

    def shown(self, job: Job) -> str:
        """The head's command, then the request."""
        variables = [f"{name}={value}" for name, value in self.environment().items()]
        return f"{shlex.join([*variables, *self.command()])}\n{super().shown(job)}"

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
        """Nothing is known once the head has ended."""
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
                left = [known.submission_id for known in client.list_jobs() if known.status.value not in ENDED]
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
        """Or the job might go to the Ray of somebody else, who has the port already."""
        try:
            socket.create_server(("127.0.0.1", self.port)).close()
        except OSError as error:
            raise ClusterError(
                f"port: {self.port} is not free ({error.strerror}); give another one in a cluster file"
            ) from None
