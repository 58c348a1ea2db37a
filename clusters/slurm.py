"""Write a batch script for SLURM that makes its nodes one Ray cluster with `ray symmetric-run`, and queue it."""

from __future__ import annotations

import hashlib
import shlex
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from pydantic import Field, field_validator

from fewstep.clusters.schema import ENDED, Cluster, Job, JobState, Status
from fewstep.clusters.this_machine import call, program

MEND = "run this on a login node, or take the script that --dry-run prints there"
STATES: dict[str, Status] = {"PENDING": "PENDING", "COMPLETED": "SUCCEEDED", "CANCELLED": "STOPPED"}
GOING = ("RUNNING", "COMPLETING", "CONFIGURING", "SUSPENDED", "REQUEUED", "RESIZING")
LOOKS_S = 5.0

SCRIPT = """\
#!/usr/bin/env bash
{directives}
# Only what --export names comes from the shell that submitted this; srun hands on what is set below.
set -euo pipefail
cd {code}
nodes="${{SLURM_JOB_NUM_NODES:-1}}"

environment={environment}
{install}export PATH="$environment/bin:$PATH" PYTHONPATH="$PWD"

# Ray takes commands only from those who know the token, which only this user can read.
export RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH={folder}/token
if [ ! -s "$RAY_AUTH_TOKEN_PATH" ]; then
    (umask 077 && python -c 'import secrets; print(secrets.token_hex(32), end="")' > "$RAY_AUTH_TOKEN_PATH")
fi
export RAY_SYMMETRIC_RUN_CLUSTER_WAIT_TIMEOUT=300
{exports}
if [ "$nodes" = 1 ]; then
    head=127.0.0.1
    everywhere=()
else
    head="$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)"
    everywhere=(srun --export=ALL --nodes="$nodes" --ntasks="$nodes" --cpus-per-task="$SLURM_CPUS_ON_NODE")
fi

# The command runs on the first node. `ray symmetric-run` also ends well where Ray never started, hence the file.
rm -f {folder}/succeeded
"${{everywhere[@]}}" ray symmetric-run --address "$head:{port}" --min-nodes "$nodes" \\
    --disable-usage-stats -- \\
    bash -c {command} fewstep "$head:{port}"
test -e {folder}/succeeded
"""


INSTALL = """\
# The packages, at the versions in constraints.txt, once for all jobs that have the same.
if [ ! -e "$environment/installed" ]; then
    {python} -m venv "$environment"
    "$environment/bin/pip" install --quiet --requirement constraints.txt
    touch "$environment/installed"
fi
"""


class Slurm(Cluster):
    """A SLURM cluster with a file system that all nodes share."""

    kind: Literal["slurm"] = Field(description="The kind of cluster.")
    folder: str = Field(
        description="A folder on the file system that all nodes share, for the code, the log and the token of each job."
    )
    partition: str = Field(default="", description='The partition, as in sbatch --partition; "" is SLURM\'s default.')
    account: str = Field(default="", description='The account, as in sbatch --account; "" is your default.')
    nodes: int = Field(default=1, gt=0, description="Whole nodes that become one Ray cluster.")
    gpus_per_node: int = Field(default=0, ge=0, description="GPUs of each node, as in sbatch --gpus-per-node.")
    time: str = Field(
        default="", description='The time limit, as in sbatch --time, like 1-12:00:00; "" is the partition\'s.'
    )
    python: str = Field(default="python3.11", description="The interpreter that makes the virtual environment.")
    environment: str = Field(
        default="",
        description='A virtual environment that has all that fewstep needs; "" makes one under `folder`, once '
        "for each set of versions.",
    )
    secrets: tuple[str, ...] = Field(
        default=(),
        description="Names of variables of the submitting shell that the job sees; values are written nowhere.",
    )
    port: int = Field(default=6379, gt=0, lt=65536, description="The port of Ray on the first node.")

    @field_validator("folder", "partition", "account", "time", "environment")
    @classmethod
    def _one_word(cls, value: str) -> str:
        if value != shlex.quote(value) and value:
            raise ValueError(f"must hold no spaces and nothing that a shell reads; got {value!r}")
        return value

    @field_validator("secrets")
    @classmethod
    def _names(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for name in value:
            if not name.isidentifier():
                raise ValueError(f"{name!r} must be the name of a variable, not its value")
        return value

    def preview(self, job: Job) -> str:
        """The script for sbatch."""
        folder = self._folder(job)
        options = {
            "job-name": job.id,
            "partition": self.partition,
            "account": self.account,
            "nodes": self.nodes,
            "ntasks-per-node": 1,
            "gpus-per-node": self.gpus_per_node,
            "mem": "0",  # all of a node's
            "time": self.time,
            "output": folder / "log.txt",
            "export": ",".join(("PATH", "HOME", "USER", "LANG", *self.secrets)),
        }
        # `ray symmetric-run` ends with a stop of all Ray on the node, hence exclusive.
        directives = [f"#SBATCH --{name}={value}" for name, value in options.items() if value] + ["#SBATCH --exclusive"]
        run = f'{shlex.join(job.command())} resources.address="$1" && touch {folder}/succeeded'
        pinned = Path(self.folder) / "environments" / _hash(job.pins)
        return SCRIPT.format(
            directives="\n".join(directives),
            code=folder / "code",
            folder=folder,
            environment=self.environment or pinned,
            install="" if self.environment else INSTALL.format(python=self.python),
            exports="".join(f"export {name}={shlex.quote(text)}\n" for name, text in self.env_vars.items()),
            port=self.port,
            command=shlex.quote(run),
        )

    def prepare(self, job: Job) -> None:
        """Check that `sbatch` is there."""
        program("sbatch", MEND)

    def submit(self, job: Job) -> None:
        """Lay out the code on the shared file system and queue the script."""
        folder = self._folder(job)
        job.bundle.write(folder / "code")
        (folder / "digest").write_text(job.digest)
        (folder / "job.sh").write_text(self.preview(job))
        call("sbatch", str(folder / "job.sh"))

    def find(self, job: Job) -> JobState | None:
        """The state that SLURM's accounting has for the newest job of this name."""
        states = call(program("sacct", MEND), "--noheader", "--parsable2", "--allocations", f"--name={job.id}",
                      "--format=State", "--starttime=now-365days").strip()  # fmt: skip
        if not states:
            return None
        state = states.splitlines()[-1].split()[0]  # of "CANCELLED by 1000" the first word
        status = STATES.get(state, "RUNNING" if state in GOING else "FAILED")
        digest = self._folder(job) / "digest"
        return JobState(status, digest.read_text() if digest.exists() else "")

    def logs(self, job: Job, follow: bool) -> Iterator[str]:
        """The script's output, read from the shared file system."""
        log = self._folder(job) / "log.txt"
        position = 0
        while True:
            state = self.find(job) if follow else None
            if log.exists():
                with log.open() as stream:
                    stream.seek(position)
                    yield stream.read()
                    position = stream.tell()
            if not state or state.status in ENDED:
                return
            time.sleep(LOOKS_S)

    def stop(self, job: Job) -> None:
        """Cancel the job by its name."""
        call(program("scancel", MEND), f"--name={job.id}")

    def _folder(self, job: Job) -> Path:
        return Path(self.folder) / job.id


def _hash(pins: tuple[str, ...]) -> str:
    return hashlib.sha256("\n".join(pins).encode()).hexdigest()[:12]
