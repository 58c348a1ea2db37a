"""Keeps a run directory: whose recipe it is, who works in it, and what is done."""

from __future__ import annotations

import importlib.metadata
import json
import os
import socket
import subprocess
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import NotRequired, TypedDict

import psutil
import yaml

from fewstep.methods.base import Round
from fewstep.orchestrator.errors import BadInput
from fewstep.orchestrator.files import write_whole
from fewstep.orchestrator.recipe.identity import compare, identity, recipe_hash
from fewstep.orchestrator.recipe.parsing import parse
from fewstep.orchestrator.recipe.recipe import Recipe
from fewstep.orchestrator.recipe.section import Json
from fewstep.orchestrator.runs.driver_lock import BEAT_S, driver_of

ABANDONED = "abandoned"
RESULT = "result"  # within the folder of a round: what it leaves behind once it is trained
RETRAINED = frozenset({"start_time"})  # fields with which methods came to train otherwise: none goes on without
VERSIONS = ("fewstep", "torch", "diffusers", "transformers", "deepspeed", "ray", "pyarrow")


class DataRecord(TypedDict):
    """A version of a data set that a round read."""

    path: str
    version: int
    content_hash: str


class RunRecord(TypedDict):
    """What run.json holds."""

    recipe: str  # its hash
    rounds: dict[str, object]
    stages: dict[str, float]  # seconds that each took, over all attempts
    versions: dict[str, str]
    manifests: NotRequired[dict[str, DataRecord]]  # by the names of the rounds
    pinned: NotRequired[dict[str, dict[str, tuple[str, int]]]]  # a search's data: path and version by round and kind


class Run:
    """One run directory, opened for one recipe."""

    def __init__(self, recipe: Recipe) -> None:
        """Create the directory, or continue in it. Raises BadInput if it belongs to another recipe."""
        self.recipe = recipe
        self.folder = Path(recipe.output).resolve()
        self._file = self.folder / "run.json"
        resolved = recipe.resolved()
        written = self.folder / "recipe.yaml"
        if written.exists():
            there, here = identity(_completed(yaml.safe_load(written.read_text()))), identity(resolved)
            if "training" not in there:  # `generate` began it without, and it may be added
                here = {key: value for key, value in here.items() if key != "training"}
            differences = compare(there, here)
            if differences:
                raise BadInput(
                    f"output: {self.folder} belongs to another recipe; choose another output or use its own values: "
                    + "; ".join(f"{key} is {there} there and {here} here" for key, there, here in differences[:6])
                )
        elif self.folder.exists() and any(self.folder.iterdir()):
            raise BadInput(f"output: {self.folder} holds files that are no run of fewstep; choose an empty folder")
        write_whole(written, yaml.safe_dump(resolved, sort_keys=False))
        if not self._file.exists():
            self._write({"recipe": "", "rounds": {}, "stages": {}, "versions": versions()})

    @property
    def facts(self) -> RunRecord:
        """What is recorded so far, read anew."""
        return json.loads(self._file.read_text())

    def round_folder(self, number: int, round: Round) -> Path:
        """Where a round keeps its checkpoints, metrics and student; rounds count from 1."""
        return round_folder(self.folder, number, round)

    def record(self, section: str, key: str, value: object) -> None:
        """Note a fact, like what a stage took."""
        facts: Json = self.facts
        values = facts.get(section, {})
        assert isinstance(values, dict)
        self._write({**facts, section: values | {key: value}})

    def recorded(self, section: str, key: str) -> object:
        """A fact noted before, or an empty string."""
        facts: Json = self.facts
        values = facts.get(section, {})
        assert isinstance(values, dict)
        return values.get(key, "")

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Time a stage; what an interrupted attempt took is not lost."""
        before = self.facts["stages"].get(name, 0.0)
        started = time.time()
        try:
            yield
        finally:
            self.record("stages", name, round(before + time.time() - started, 2))

    @contextmanager
    def driven(self) -> Iterator[None]:
        """Be the one live driver of this directory. Raises BadInput if there is another."""
        file = self.folder / "driver.json"
        if other := driver_of(self.folder):
            raise BadInput(f"output: {other} is already working in {self.folder}")
        stop = threading.Event()

        def write() -> None:
            me = {"pid": os.getpid(), "host": socket.gethostname(), "beat": time.time()}
            write_whole(file, json.dumps(me | {"born": psutil.Process().create_time()}))

        def beat() -> None:
            while not stop.wait(BEAT_S):
                write()

        write()  # before any work, or a second driver that starts at once would not see this one
        thread = threading.Thread(target=beat, daemon=True, name="heartbeat")
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join()
            file.unlink(missing_ok=True)

    def _write(self, facts: Mapping[str, object]) -> None:
        current = {**facts, "recipe": recipe_hash(self.recipe)}  # which changes where training is added
        write_whole(self._file, json.dumps(current, indent=1))


def reopen(folder: Path) -> Run:
    """The run that is in a directory. Raises BadInput where there is none."""
    return Run(recipe_of(folder).model_copy(update={"output": str(folder.resolve())}))


def recipe_of(folder: Path) -> Recipe:
    """The recipe of the run that is in a directory. Raises BadInput where there is none."""
    if not (folder / "run.json").exists():
        raise BadInput(f"RUN: {folder} is no run of fewstep, it has no run.json; give the output of one")
    return parse(yaml.safe_load((folder / "recipe.yaml").read_text()))


def round_folder(folder: Path, number: int, round: Round) -> Path:
    """Where a round of the run in a directory is; rounds count from 1."""
    return folder / "rounds" / f"{number}-{round.name}"


def abandon(folder: Path) -> None:
    """Ask a run's training to end soon, without a result. It stays so."""
    write_whole(folder / ABANDONED, "")


def is_abandoned(folder: Path) -> bool:
    """Whether somebody has asked the run in a folder to end."""
    return (folder / ABANDONED).exists()


def _completed(recorded: Json) -> Json:
    """A recipe as an older version wrote it, with the fields that came since at their defaults."""
    try:
        resolved = parse(recorded).resolved()
    except BadInput:
        return recorded  # a field is gone or has another form: the comparison names it
    before, method = (recipe["method"] for recipe in (recorded, resolved))
    assert isinstance(before, dict) and isinstance(method, dict)
    return {**resolved, "method": {key: method[key] for key in method if key in before or key not in RETRAINED}}


def versions() -> dict[str, str]:
    """The versions of what runs: packages, and fewstep's own revision where it runs from a checkout."""
    packages = {name: importlib.metadata.version(name) for name in VERSIONS}
    here = Path(__file__).parent
    git = subprocess.run(["git", "rev-parse", "HEAD"], cwd=here, capture_output=True, text=True, check=False)
    return packages | ({"git": git.stdout.strip()} if git.returncode == 0 else {})
