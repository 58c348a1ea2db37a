"""Keeps features on disk under a hash of all that they depend on: made once, found again, never mistaken."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import uuid
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
from pydantic import TypeAdapter

from fewstep.orchestrator.evaluation.system import SampleFeatures
from fewstep.orchestrator.observability.console import say

Decision = TypeVar("Decision")


@dataclass(frozen=True)
class Key:
    """What a file holds: a name for people, and the facts whose hash finds it again."""

    name: str
    facts: Mapping[str, object]

    @property
    def stem(self) -> str:
        """Name and hash, without the file's suffix."""
        text = json.dumps(self.facts, sort_keys=True, separators=(",", ":"))
        return f"{self.name}-{hashlib.sha256(text.encode()).hexdigest()[:16]}"


def newest(folder: Path, name: str) -> SampleFeatures:
    """What was measured last under a name, whatever else it depends on."""
    file = max(folder.glob(f"{name}-*.npz"), key=lambda file: file.stat().st_mtime_ns)
    return read_features(file)


def read_features(file: Path) -> SampleFeatures:
    """What `FeatureFiles.keep` wrote. Raises KeyError where a part of it is missing."""
    with np.load(file, allow_pickle=False) as arrays:
        return SampleFeatures(
            features=arrays["features"],
            check=arrays["check"],
            appearance=arrays["appearance"],
            pictures=arrays["pictures"],
            check_network=str(arrays["check_network"]),
        )


class FeatureFiles:
    """A folder of features of our own, and one that came with the teacher ("" for none).

    `check` is the second network that has to have seen the pictures too, "" for none. Keys leave it out: what is
    decided by the first network's features does not depend on it.
    """

    def __init__(self, own: Path, shipped: str, check: str) -> None:
        self.own, self._check = own, check
        self._folders = [own, Path(shipped)] if shipped else [own]
        own.mkdir(parents=True, exist_ok=True)

    def find(self, key: Key, count: int) -> SampleFeatures | None:
        """The first `count` samples, where a whole file has that many.

        A sample depends on its number alone, so that the features of 2,000 hold those of 500.
        """
        for folder in self._folders:
            file = folder / f"{key.stem}.npz"
            if not file.exists():
                continue
            try:
                measured = read_features(file)
            except (zipfile.BadZipFile, ValueError, KeyError, EOFError, OSError):
                say(f"{file} is damaged, or of another version, and is made again")
                continue
            if len(measured.features) >= count and self._check in ("", measured.check_network):
                return measured.first(count)
        return None

    def keep(self, key: Key, measured: SampleFeatures) -> None:
        """Write a file, whole or not at all."""
        fresh = self.own / f".{uuid.uuid4().hex}.npz"
        facts = json.dumps(key.facts, sort_keys=True)
        np.savez_compressed(fresh, allow_pickle=False, **vars(measured), facts=np.array(facts))
        os.replace(fresh, self.own / f"{key.stem}.npz")

    def recall(self, key: Key, kind: type[Decision]) -> Decision | None:
        """A decision that was kept, or None."""
        for folder in self._folders:
            file = folder / f"{key.stem}.json"
            if file.exists():
                return TypeAdapter(kind).validate_python(json.loads(file.read_text()))
        return None

    def decide(self, key: Key, decision: Mapping[str, object]) -> None:
        """Keep a decision, so that it is not taken again."""
        fresh = self.own / f".{uuid.uuid4().hex}.json"
        fresh.write_text(json.dumps(decision, indent=1))
        os.replace(fresh, self.own / f"{key.stem}.json")

    def ship(self, key: Key, to: Path) -> None:
        """Copy what a key stands for to another folder."""
        to.mkdir(parents=True, exist_ok=True)
        for folder in reversed(self._folders):
            for file in folder.glob(f"{key.stem}.*"):
                if folder != to:
                    shutil.copyfile(file, to / file.name)
