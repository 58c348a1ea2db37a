"""Start machines of a cloud with `ray up`, adding a token and start commands to its own configuration."""

from __future__ import annotations

import importlib.util
import json
import shlex
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import jsonschema
import yaml
from pydantic import Field, field_validator

from fewstep.clusters.jobs_api import JobsCluster, connect
from fewstep.clusters.schema import ClusterError, Job
from fewstep.clusters.this_machine import call, program, state_folder, token_file

if TYPE_CHECKING:
    from ray.job_submission import JobSubmissionClient

START = {  # the dashboard listens on loopback alone; it is reached through SSH
    "head_start_ray_commands": [
        "ray stop",
        "RAY_AUTH_MODE=token ray start --head --port=6379 --object-manager-port=8076 --dashboard-host=127.0.0.1 "
        "--autoscaling-config=~/ray_bootstrap_config.yaml --disable-usage-stats",
    ],
    "worker_start_ray_commands": [
        "ray stop",
        "RAY_AUTH_MODE=token ray start --address=$RAY_HEAD_IP:6379 --object-manager-port=8076 --disable-usage-stats",
    ],
}
TUNNEL_S = 60.0


class Vm(JobsCluster):
    """Machines of a cloud that `ray up` starts, shared by all jobs with this file."""

    kind: Literal["vm"] = Field(description="The kind of cluster.")
    ray_up: Mapping[str, object] = Field(
        description="The configuration for `ray up`, as Ray documents it, without the commands that start Ray."
    )

    @field_validator("ray_up")
    @classmethod
    def _known(cls, value: Mapping[str, object]) -> Mapping[str, object]:
        for key in START:
            if key in value:
                raise ValueError(f"{key} is fewstep's: it turns token authentication on; leave it out")
        schema = jsonschema.Draft7Validator(ray_up_schema())
        wrong = next(schema.iter_errors(json.loads(json.dumps(value))), None)
        if wrong:
            raise ValueError(
                f"{'.'.join(map(str, wrong.absolute_path)) or 'a key'} is not what `ray up` takes: {wrong.message}"
            )
        return value

    @property
    def name(self) -> str:
        """The name of the cluster, by which `ray up` finds it again."""
        return str(self.ray_up["cluster_name"])

    def config(self) -> dict[str, object]:
        """The configuration for `ray up`: the file's own, the token's path on this machine, and how Ray starts."""
        mounts = self.ray_up.get("file_mounts", {})
        assert isinstance(mounts, dict)
        return {**self.ray_up, "file_mounts": {**mounts, "~/.ray/auth_token": str(token_file(self.name))}, **START}

    def preview(self, job: Job) -> str:
        """The configuration, the command, then the request that goes through a tunnel."""
        config = yaml.safe_dump(self.config(), sort_keys=False)
        return f"{config}---\n# {shlex.join(['ray', *self._up()])}\n{super().preview(job)}"

    def prepare(self, job: Job) -> None:
        """Start the head, or bring a running one to this configuration."""
        super().prepare(job)
        self._file.parent.mkdir(parents=True, exist_ok=True)
        self._file.write_text(yaml.safe_dump(self.config(), sort_keys=False))
        call(program("ray", "it comes with ray[default]"), *self._up())

    @contextmanager
    def client(self) -> Iterator[JobSubmissionClient]:
        """A client through an SSH tunnel, which is closed with it."""
        if not self._file.exists():
            raise ClusterError(f"vm: {self.name} was not started from this machine; `fewstep submit` starts it")
        port = _free_port()
        ray_command = program("ray", "it comes with ray[default]")
        tunnel = subprocess.Popen(
            [ray_command, "dashboard", str(self._file), "--port", str(port)],
            stdin=subprocess.PIPE,  # open: the shell at the other end waits for it
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        token, ends = token_file(self.name).read_text(), time.monotonic() + TUNNEL_S
        try:
            while True:
                try:
                    client = connect(f"http://127.0.0.1:{port}", token, pinned=self.install)
                    break
                except ClusterError:
                    if tunnel.poll() is not None or time.monotonic() > ends:
                        raise
                    time.sleep(1.0)
            yield client
        finally:
            tunnel.terminate()
            tunnel.wait()

    def release(self) -> str:
        """A sentence on the head, which stays and costs until somebody ends it."""
        return f"the head of {self.name} stays, and costs, until `ray down --yes {self._file}`"

    @property
    def _file(self) -> Path:
        return state_folder() / f"vm-{self.name}.yaml"

    def _up(self) -> list[str]:
        return ["up", "--yes", "--no-restart", str(self._file)]


def ray_up_schema() -> dict:
    """The schema that `ray up` checks configurations by, read without importing Ray."""
    spec = importlib.util.find_spec("ray")
    if spec is None or spec.origin is None:
        raise ClusterError("kind: vm takes an installed Ray; pip install 'ray[default]'")
    return json.loads((Path(spec.origin).parent / "autoscaler/ray-schema.json").read_text())


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]
