"""Writes and finds checkpoints that are whole or do not count: files first, then a record with the hash of each."""

from __future__ import annotations

import json
import math
import os
import shutil
import uuid
from dataclasses import asdict, dataclass
from pathlib import Path

from pydantic import TypeAdapter

from fewstep.orchestrator.files import file_hash, write_whole
from fewstep.orchestrator.observability.console import say

RECORD = "checkpoint.json"


@dataclass(frozen=True)
class CheckpointFacts:
    """What a resuming run has to know besides the state of the networks."""

    world_size: int  # ranks that wrote it
    batches: str  # digest of all batches so far, in hexadecimal
    scores: tuple[tuple[int, float], ...]  # step and score of each validation so far


_FACTS = TypeAdapter(CheckpointFacts)


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint whose hashes held when it was opened."""

    folder: Path
    step: int  # training steps done
    facts: CheckpointFacts


def new_folder(root: Path, step: int, attempt: str = "") -> Path:
    """Where a checkpoint is written; no two attempts share one."""
    return root / f"step-{step:08d}-{attempt or uuid.uuid4().hex[:8]}"


def seal(folder: Path, step: int, facts: CheckpointFacts) -> None:
    """Make what lies in the folder a checkpoint. Called once, after every rank has written."""
    files = sorted(file for file in folder.rglob("*") if file.is_file())
    for file in files:
        with file.open("rb") as stream:
            os.fsync(stream.fileno())
    hashes = {file.relative_to(folder).as_posix(): file_hash(file) for file in files}
    write_whole(folder / RECORD, json.dumps({"step": step, "facts": asdict(facts), "files": hashes}, indent=1))


def newest(root: Path, until: float = math.inf) -> Checkpoint | None:
    """The newest checkpoint up to a step whose hashes hold; says which ones it had to pass over."""
    if not root.exists():
        return None
    for folder in sorted(root.iterdir(), reverse=True):
        if not (folder / RECORD).exists() or _step(folder) > until:
            continue
        wrong = broken(folder)
        if not wrong:
            record = json.loads((folder / RECORD).read_text())
            return Checkpoint(folder, record["step"], _FACTS.validate_python(record["facts"]))
        say(f"checkpoint {folder.name} is damaged ({wrong}); falling back to the one before")
    return None


def broken(folder: Path) -> str:
    """What is wrong with a checkpoint, or nothing."""
    try:
        record = json.loads((folder / RECORD).read_text())
    except ValueError:
        return f"{RECORD} cannot be read"
    for name, expected in record["files"].items():
        if not (folder / name).exists():
            return f"{name} is missing"
        if file_hash(folder / name) != expected:
            return f"{name} is not what was written"
    return ""


def prune(root: Path, keep: int, best: int = 0) -> None:
    """Leave the newest `keep` sealed checkpoints and that of step `best`, and nothing unsealed from before them."""
    sealed = sorted(folder for folder in root.iterdir() if (folder / RECORD).exists())
    recent = sealed[-keep:]
    spared = [folder for folder in sealed if _step(folder) == best]
    for folder in root.iterdir():
        if recent and folder.name < recent[0].name and folder not in spared:
            shutil.rmtree(folder)


def _step(folder: Path) -> int:
    return int(folder.name.split("-")[1])
