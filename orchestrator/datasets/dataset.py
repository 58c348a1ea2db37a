"""Reads a data set: one version, pinned, of rows and of what they are conditioned on."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fewstep.methods.diffusion import Cond
from fewstep.orchestrator.datasets.commit_log import CommitLog, open_commit_log
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

    def __init__(self, commit_log: CommitLog, manifest: Manifest, cache: Cache) -> None:
        self._commit_log, self._cache = commit_log, cache
        self._groups = [(commit, i) for commit in manifest.shards for i in range(len(commit.file.row_groups))]
        self._readers: dict[str, ShardReader] = {}
        self._checked: set[int] = set()

    @property
    def sizes(self) -> list[int]:
        """Rows of each row group."""
        return [commit.file.row_groups[index].rows for commit, index in self._groups]

    @property
    def shapes(self) -> list[tuple[int, ...]]:
        """Shape of the latents of each one's rows."""
        plan = self._commit_log.plan
        return [plan.sample_shape(Shard.named(commit.name).samples.start) for commit, _ in self._groups]

    def read(self, group: int) -> Columns:
        """The rows of one: sample_id, seed, condition_id, guidance_scale and path. Raises Damaged."""
        commit, index = self._groups[group]
        if commit.name not in self._readers:
            self._readers[commit.name] = self._commit_log.reader(commit, self._cache)
        columns = self._readers[commit.name].row_group(index, check=group not in self._checked)
        self._checked.add(group)
        return columns


class Dataset:
    """One version of a data set."""

    def __init__(self, commit_log: CommitLog, manifest: Manifest, cache: Cache) -> None:
        self.manifest, self.plan = manifest, commit_log.plan
        self._commit_log, self._cache = commit_log, cache

    @classmethod
    def open(cls, url: str, version: int, cache: Cache = Uncached()) -> Dataset:  # noqa: B008 - it holds nothing
        """A version of the data set that a URL or folder holds. Raises BadInput where there is none, and Damaged."""
        commit_log = open_commit_log(url)
        return cls(commit_log, commit_log.manifest(version), cache)

    @property
    def url(self) -> str:
        """Where it is: a folder, or an s3:// URL."""
        return self._commit_log.url

    @property
    def version(self) -> int:
        """The number of the version."""
        return self.manifest.version

    def check(self) -> None:
        """Raise Damaged with the first file of this version that is not what was committed.

        A folder's files are hashed; those of a bucket are not fetched for that, but hashed when they are read.
        """
        commits = (self.manifest.conditions, *self.manifest.shards)
        self._commit_log.check_sizes(commits)
        if not self.url.startswith("s3://"):
            for commit in commits:
                self._commit_log.reader(commit).verify()

    def row_groups(self) -> RowGroups:
        """Open the rows of this version, which are read a group at a time."""
        return RowGroups(self._commit_log, self.manifest, self._cache)

    def conditions(self) -> Conditions:
        """Read all conditions."""
        return read_conditions(self._commit_log, self.manifest.conditions)

    def times(self) -> Tensor:
        """The schedule's time of each saved point; -1 is clean."""
        return torch.tensor(self._commit_log.reader(self.manifest.shards[0]).about["times"])


def read_conditions(commit_log: CommitLog, commit: Commit) -> Conditions:
    """The conditions of a commit."""
    tensors = {name: value for name, value in commit_log.reader(commit).read().items() if value.ndim > 1}
    return Conditions({name: value[1:] for name, value in tensors.items()}, {n: v[:1] for n, v in tensors.items()})
