"""A data set as its readers see it: one version, pinned, of rows and of what they are conditioned on."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fewstep.methods.diffusion import Cond
from fewstep.orchestrator.datasets.commit_log import Ledger, open_ledger
from fewstep.orchestrator.datasets.manifest import Commit, Manifest
from fewstep.orchestrator.datasets.plan import Shard
from fewstep.orchestrator.datasets.shard_file import Columns, ShardReader
from fewstep.orchestrator.storage.block_cache import Cache, Uncached

NULL = -1  # condition_id of the null condition, the first row of the conditions


@dataclass(frozen=True)
class Conditions:
    """What samples are conditioned on, each distinct prompt once."""

    cond: Cond  # the row of a condition is its id
    uncond: Cond  # the null condition, [1, ...]

    def rows(self, ids: Tensor) -> Cond:
        """The conditions with these ids."""
        return {name: value[ids] for name, value in self.cond.items()}


class RowGroups:
    """All row groups of a version, in order. Each is checked against its commit when it is first read."""

    def __init__(self, ledger: Ledger, manifest: Manifest, cache: Cache) -> None:
        self._ledger, self._cache = ledger, cache
        self._places = [(commit, i) for commit in manifest.shards for i in range(len(commit.file.row_groups))]
        self._readers: dict[str, ShardReader] = {}
        self._checked: set[int] = set()

    @property
    def sizes(self) -> list[int]:
        """Rows of each."""
        return [commit.file.row_groups[index].rows for commit, index in self._places]

    @property
    def shapes(self) -> list[tuple[int, ...]]:
        """Of the latents of each one's rows."""
        plan = self._ledger.plan
        return [plan.sample_shape(Shard.named(commit.name).samples.start) for commit, _ in self._places]

    def read(self, group: int) -> Columns:
        """The rows of one: sample_id, seed, condition_id, guidance_scale and path. Raises Damaged."""
        commit, index = self._places[group]
        if commit.name not in self._readers:
            self._readers[commit.name] = self._ledger.reader(commit, self._cache)
        columns = self._readers[commit.name].row_group(index, check=group not in self._checked)
        self._checked.add(group)
        return columns


class Dataset:
    """One version of a data set."""

    def __init__(self, ledger: Ledger, manifest: Manifest, cache: Cache) -> None:
        self.manifest, self.plan = manifest, ledger.plan
        self._ledger, self._cache = ledger, cache

    @classmethod
    def open(cls, place: str, version: int, cache: Cache = Uncached()) -> Dataset:  # noqa: B008 - it holds nothing
        """The version of the data set in a place. Raises BadInput where there is none, and Damaged."""
        ledger = open_ledger(place)
        return cls(ledger, ledger.manifest(version), cache)

    @property
    def place(self) -> str:
        """Where it is."""
        return self._ledger.url

    @property
    def version(self) -> int:
        """Of the manifest."""
        return self.manifest.version

    def check(self) -> None:
        """Raise Damaged with the first file of this version that is not what was committed.

        A folder's files are hashed; those of a bucket are not fetched for that, but hashed when they are read.
        """
        commits = (self.manifest.conditions, *self.manifest.shards)
        self._ledger.check_sizes(commits)
        if not self.place.startswith("s3://"):
            for commit in commits:
                self._ledger.reader(commit).verify()

    def row_groups(self) -> RowGroups:
        """The rows."""
        return RowGroups(self._ledger, self.manifest, self._cache)

    def conditions(self) -> Conditions:
        """All conditions."""
        return read_conditions(self._ledger, self.manifest.conditions)

    def times(self) -> Tensor:
        """The schedule's time of each saved point; -1 is clean."""
        return torch.tensor(self._ledger.reader(self.manifest.shards[0]).about["times"])


def read_conditions(ledger: Ledger, commit: Commit) -> Conditions:
    """The conditions of a commit."""
    tensors = {name: value for name, value in ledger.reader(commit).read().items() if value.ndim > 1}
    return Conditions({name: value[1:] for name, value in tensors.items()}, {n: v[:1] for n, v in tensors.items()})
