"""Describes a data set in records: which file is a shard, and which shards are a version."""

from __future__ import annotations

from dataclasses import dataclass

from fewstep.orchestrator.compute.reproducibility import Compute
from fewstep.orchestrator.datasets.shard_file import FileRecord

CONDITIONS = "conditions"  # the name of the one file that is no shard


@dataclass(frozen=True)
class Commit:
    """The record that makes a file exist. The first has revision 0, and each repair the next."""

    name: str  # of the shard, or "conditions"
    revision: int
    attempt: str  # hexadecimal, never used twice
    compute: Compute
    file: FileRecord

    @property
    def key(self) -> str:
        """Key of this record in the store."""
        return commit_key(self.name, self.revision)

    @property
    def what(self) -> str:
        """How messages spell it."""
        return CONDITIONS if self.name == CONDITIONS else f"shard {self.name}"

    @property
    def file_key(self) -> str:
        """Key of the file in the store."""
        folder = CONDITIONS if self.name == CONDITIONS else f"shards/{self.name}"
        return f"{folder}/{self.attempt}.parquet"


@dataclass(frozen=True)
class Manifest:
    """One version of the data set, which readers pin."""

    version: int
    plan: str  # hash
    samples: int  # planned
    conditions: Commit
    shards: tuple[Commit, ...]  # by id
    content_hash: str  # over (sample id, tensor bytes) of all rows, in order
    changed: tuple[str, ...]  # shards whose content is not that of the version before

    @property
    def rows(self) -> int:
        """Samples in this version; fewer than planned where shards were quarantined."""
        return sum(commit.file.rows for commit in self.shards)


@dataclass(frozen=True)
class BrokenShard:
    """Something that is not what was committed."""

    shard: str
    why: str


@dataclass(frozen=True)
class CleanedFiles:
    """What `fewstep clean` removed."""

    files: int
    bytes: int


@dataclass(frozen=True)
class Verification:
    """What `fewstep verify` found."""

    shards: int
    rows: int
    content_hash: str
    broken: tuple[BrokenShard, ...]


def commit_key(name: str, revision: int) -> str:
    """Where the record of a file is kept."""
    return f"commits/{name}.json" if revision == 0 else f"commits/{name}.{revision}.json"
