"""Keep state on this machine between commands: a folder, tokens and locks; and call other programs by name."""

from __future__ import annotations

import fcntl
import os
import secrets
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fewstep.clusters.schema import ClusterError


def state_folder() -> Path:
    """The folder of what fewstep knows about submitted jobs."""
    return Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local/state") / "fewstep"


def token_file(name: str) -> Path:
    """The token of a cluster that fewstep starts, created if it is missing, readable by its owner alone."""
    file = state_folder() / "tokens" / name
    file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    try:
        with os.fdopen(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as stream:
            stream.write(secrets.token_hex(32))
    except FileExistsError:
        pass
    return file


@contextmanager
def alone(file: Path) -> Iterator[None]:
    """Hold a lock on a file, so that one process of this machine at a time is inside."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def program(name: str, mend: str) -> str:
    """The path of a program. Raises ClusterError, which ends with `mend`, if it is not on PATH."""
    path = shutil.which(name)
    if not path:
        raise ClusterError(f"{name} is not on PATH; {mend}")
    return path


def call(*command: str) -> str:
    """What a program prints. Raises ClusterError with the last line of its complaint."""
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        complaint = (done.stderr or done.stdout).strip().splitlines() or ["it said nothing"]
        raise ClusterError(f"`{' '.join(command[:3])} ...` failed: {complaint[-1]}")
    return done.stdout
