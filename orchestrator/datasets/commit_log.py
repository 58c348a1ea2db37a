"""Keeps account of a data set: a commit makes a shard exist, a manifest makes it readable, nothing is overwritten."""

from __future__ import annotations

import functools
import hashlib
import re
import uuid
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict

from pydantic import TypeAdapter

from fewstep.orchestrator.compute.reproducibility import Compute
from fewstep.orchestrator.datasets.captioned_plans import ImagePlan, ImportPlan
from fewstep.orchestrator.datasets.manifest import (
    CONDITIONS,
    BrokenShard,
    CleanedFiles,
    Commit,
    Manifest,
    Verification,
    commit_key,
)
from fewstep.orchestrator.datasets.plan import DatasetPlan, Plan, Shard
from fewstep.orchestrator.datasets.sealed_records import Damaged, MakeError, gc_paused, seal, unseal
from fewstep.orchestrator.datasets.shard_file import Columns, ShardReader, encode
from fewstep.orchestrator.errors import BadInput
from fewstep.orchestrator.recipe.section import Json
from fewstep.orchestrator.recipe.teacher import TeacherSpec
from fewstep.orchestrator.storage.block_cache import Cache, Uncached
from fewstep.orchestrator.storage.store import Store, probe
from fewstep.orchestrator.storage.urls import open_store

_COMMIT = re.compile(r"commits/(conditions|\d{8,}-\d{8,})(?:\.(\d+))?\.json")
_GARBAGE = re.compile(
    r"shards/\d{8,}-\d{8,}/[0-9a-f]{32}\.parquet|conditions/[0-9a-f]{32}\.parquet|commits/probe-[0-9a-f]{32}"
)
_MANIFEST = re.compile(r"manifest/(\d+)\.json")

_COMMITS, _MANIFESTS = TypeAdapter(Commit), TypeAdapter(Manifest)
_PLANS: TypeAdapter[Plan | ImagePlan | ImportPlan] = TypeAdapter(Plan | ImagePlan | ImportPlan)


class CommitLog:
    """The commits and manifests of one data set."""

    def __init__(self, store: Store, plan: DatasetPlan, teacher: TeacherSpec) -> None:
        self.store, self.plan, self.teacher = store, plan, teacher

    @property
    def url(self) -> str:
        """Where the data set is: a folder, or an s3:// URL."""
        return self.store.url

    def prompts(self) -> list[str]:
        """The distinct prompts; a condition's id is its place."""
        record = unseal(self.store.read("prompts.json"), _unreadable(self.store, "prompts.json"))
        return TypeAdapter(list[str]).validate_python(record["prompts"])

    def commit(self, name: str, revision: int, columns: Columns, about: Json, compute: Compute) -> Commit:
        """Write a file and commit it; where another writer was first, its commit, after a check of its file."""
        data, record = encode(columns, self.plan.rows_per_group, {"plan": self.plan.hash, "name": name, **about})
        ours = Commit(name, revision, uuid.uuid4().hex, compute, record)
        self.store.write(ours.file_key, data)
        if self.store.put_if_absent(ours.key, seal(asdict(ours))):
            return ours
        first = self._read_commit(ours.key)
        if first.attempt == ours.attempt:  # it was ours, and only the answer got lost
            return ours
        self.store.delete(ours.file_key)
        return self.adopt(name, revision)

    def adopt(self, name: str, revision: int) -> Commit:
        """Take over somebody else's commit, after a check of its file. Raises Damaged."""
        commit = self._read_commit(commit_key(name, revision))
        self.reader(commit).verify()
        return commit

    @gc_paused()
    def commits(self) -> tuple[dict[str, Commit], list[BrokenShard]]:
        """The newest commit of each name, and the records that cannot be read."""
        newest, broken = dict[str, Commit](), []
        keys = {name: commit_key(name, revision) for name, revision in self.revisions().items()}
        for (name, key), data in zip(keys.items(), self.store.read_many(list(keys.values())), strict=True):
            try:
                newest[name] = self._unsealed(key, data)
            except Damaged as error:
                broken.append(BrokenShard(name, f"its commit {error.why}"))
        return newest, broken

    def newest_commit(self, name: str) -> Commit:
        """The newest commit of one name, which has one. Raises Damaged."""
        return self._read_commit(commit_key(name, self.revisions()[name]))

    def revisions(self) -> dict[str, int]:
        """The newest revision of each name that has a commit, readable or not."""
        newest = dict[str, int]()
        for key in self.store.keys("commits"):
            if match := _COMMIT.fullmatch(key):
                name, revision = match[1], int(match[2] or 0)
                newest[name] = max(newest.get(name, 0), revision)
        return newest

    def has(self, name: str, revision: int) -> bool:
        """Whether somebody committed it."""
        try:
            return self.store.size(commit_key(name, revision)) > 0
        except FileNotFoundError:
            return False

    def versions(self) -> list[int]:
        """The manifests that were published, oldest first."""
        return sorted(int(match[1]) for key in self.store.keys("manifest") if (match := _MANIFEST.fullmatch(key)))

    @gc_paused()
    def manifest(self, version: int) -> Manifest:
        """A version of the data set. Raises BadInput where there is none, and Damaged."""
        key = f"manifest/{version:04d}.json"
        try:
            data = self.store.read(key)
        except FileNotFoundError:
            raise BadInput(f"{self.url} has no version {version}; finish it with `fewstep generate`") from None
        make_error = self._make_error(f"version {version}")
        manifest = _MANIFESTS.validate_python(unseal(data, make_error))
        if (manifest.version, manifest.plan) != (version, self.plan.hash):
            raise make_error(f"is version {manifest.version} of {manifest.plan[:8]}, put in its place")
        for commit in manifest.shards:
            shape = self.plan.sample_shape(Shard.named(commit.name).samples.start)
            if wrong := commit.file.wrong_rows(self.plan.row_bytes(shape)):
                raise self._make_error(commit.what)(wrong)
        return manifest

    def as_published(self) -> CommitLog:
        """With as many samples as the last version that can be read has, if there is one."""
        samples = next((manifest.samples for manifest in self._readable().values()), self.plan.samples)
        return CommitLog(self.store, self.plan.model_copy(update={"samples": samples}), self.teacher)

    def newest(self) -> Manifest:
        """The last version that was published."""
        return self.manifest(max(self.versions(), default=1))

    def publish(self, commits: Mapping[str, Commit]) -> Manifest:
        """Make what is committed of the plan readable as a new version, unless there is one already."""
        shards = tuple(commits[shard.name] for shard in self.plan.shards() if shard.name in commits)
        conditions = commits[CONDITIONS]
        digests = b"".join(bytes.fromhex(commit.file.content) for commit in shards)
        while True:
            versions = self._readable()
            for manifest in versions.values():
                if (manifest.samples, manifest.conditions, manifest.shards) == (self.plan.samples, conditions, shards):
                    return manifest
            version = max(self.versions(), default=0)
            before = {commit.name: commit for commit in versions[version].shards} if version in versions else {}
            changed = (c.name for c in shards if c.name in before and before[c.name].file.content != c.file.content)
            ours = Manifest(
                version=version + 1,
                plan=self.plan.hash,
                samples=self.plan.samples,
                conditions=conditions,
                shards=shards,
                content_hash=hashlib.sha256(digests).hexdigest(),
                changed=tuple(changed),
            )
            if self.store.put_if_absent(f"manifest/{ours.version:04d}.json", seal(asdict(ours))):
                return ours

    def reader(self, commit: Commit, cache: Cache = Uncached()) -> ShardReader:  # noqa: B008 - it holds nothing
        """Reads the rows of a commit. Raises Damaged, now or later, with the command that mends it."""
        return ShardReader(self.store, commit.file_key, commit.file, self._make_error(commit.what), cache)

    def check_sizes(self, commits: Iterable[Commit]) -> None:
        """Every file is there and as long as it was, by one listing. Raises Damaged with the first that is not."""
        sizes = {stored.key: stored.bytes for stored in self.store.files()}
        for commit in commits:
            if commit.file_key not in sizes:
                raise self._make_error(commit.what)("is gone")
            if wrong := commit.file.wrong_size(sizes[commit.file_key]):
                raise self._make_error(commit.what)(wrong)

    def check(self, commit: Commit) -> str:
        """What is wrong with a committed file, or nothing."""
        try:
            self.reader(commit).verify()
        except Damaged as error:
            return error.why
        return ""

    def verify(self) -> Verification:
        """Hash everything that the newest version names, and read every commit."""
        commits, broken = self.commits()
        listed, content_hash = list(commits.values()), ""
        if versions := self.versions():
            try:
                manifest = self.manifest(versions[-1])
                listed, content_hash = [manifest.conditions, *manifest.shards], manifest.content_hash
            except Damaged as error:
                broken.append(BrokenShard(f"version {versions[-1]}", error.why))
        broken += [BrokenShard(commit.name, why) for commit in listed if (why := self.check(commit))]
        shards = [commit for commit in listed if commit.name != CONDITIONS]
        return Verification(len(shards), sum(commit.file.rows for commit in shards), content_hash, tuple(broken))

    def clean(self, age_s: float) -> CleanedFiles:
        """Remove what is older and no commit or version names: of writers that lost or died, probes, unfinished writes.

        Old revisions stay, because versions that readers pin name them.
        """
        named = set[str]()  # files of a commit or a version
        for key in self.store.keys("commits"):
            if _COMMIT.fullmatch(key):
                named.add(self._read_commit(key).file_key)
        for manifest in self._readable().values():  # a copy of a data set may lack its commits
            named |= {commit.file_key for commit in (manifest.conditions, *manifest.shards)}
        garbage = [
            stored
            for stored in self.store.files()
            if _GARBAGE.fullmatch(stored.key) and stored.key not in named and stored.age_s > age_s
        ]
        for stored in garbage:
            self.store.delete(stored.key)
        return CleanedFiles(len(garbage) + self.store.sweep(age_s), sum(stored.bytes for stored in garbage))

    def _readable(self) -> dict[int, Manifest]:
        """The versions that are not damaged, newest first."""
        manifests = dict[int, Manifest]()
        for version in reversed(self.versions()):
            try:
                manifests[version] = self.manifest(version)
            except Damaged:
                continue
        return manifests

    def _read_commit(self, key: str) -> Commit:
        return self._unsealed(key, self.store.read(key))

    def _unsealed(self, key: str, data: bytes) -> Commit:
        make_error = self._make_error(key)
        commit = _COMMITS.validate_python(unseal(data, make_error))
        if commit.key != key:
            raise make_error(f"is that of {commit.what}, put in its place")
        return commit

    def _make_error(self, what: str) -> MakeError:
        return functools.partial(Damaged, f"{what} of {self.url}", f"mend it with `fewstep repair {self.url}`")


def create_commit_log(
    url: str, plan: DatasetPlan, prompts: Sequence[str], teacher: TeacherSpec, *, single_writer: bool = False
) -> CommitLog:
    """The data set of a plan within a store, new or continued. Raises BadInput where the place will not do."""
    store = open_store(f"{url.rstrip('/')}/{plan.hash}", single_writer=single_writer)
    probe(store, "commits")
    store.put_if_absent("prompts.json", seal({"prompts": list(prompts)}))
    record = {
        "hash": plan.hash,
        "single_writer": single_writer,
        "plan": plan.model_dump(mode="json"),
        "teacher": teacher.model_dump(mode="json"),
    }
    store.put_if_absent("plan.json", seal(record))
    commit_log = open_commit_log(store.url)
    if differing := ", ".join(plan.differences(commit_log.plan)):
        raise BadInput(f"store: {store.url} holds another plan, which differs in {differing}; move it away")
    return CommitLog(commit_log.store, plan, commit_log.teacher)


def open_commit_log(url: str) -> CommitLog:
    """The data set in a folder or under an s3:// URL. Raises BadInput where there is none."""
    store = open_store(url)
    try:
        data = store.read("plan.json")
    except FileNotFoundError:
        raise BadInput(f"{store.url} is no data set, it has no plan.json; make one with `fewstep generate`") from None
    record = unseal(data, _unreadable(store, "plan.json"))
    if record["single_writer"]:
        store = open_store(url, single_writer=True)
    return CommitLog(store, _PLANS.validate_python(record["plan"]), TeacherSpec.model_validate(record["teacher"]))


def count_committed(url: str, plan: DatasetPlan) -> int:
    """How many shards of a plan a store holds already."""
    store = open_store(f"{url.rstrip('/')}/{plan.hash}")
    committed = {match[1] for key in store.keys("commits") if (match := _COMMIT.fullmatch(key))}
    return len(committed & {shard.name for shard in plan.shards()})


def _unreadable(store: Store, key: str) -> MakeError:
    mend = "delete it and repeat `fewstep generate`, which writes it again and keeps what is committed"
    return functools.partial(Damaged, f"{key} of {store.url}", mend)
