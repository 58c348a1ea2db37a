"""The commit protocol on a store with S3's semantics: whatever dies when, and whichever answer gets lost."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence

from hypothesis import given, settings
from hypothesis import strategies as st

from fewstep.orchestrator.datasets.commit_log import CommitLog
from fewstep.orchestrator.datasets.manifest import Manifest
from fewstep.orchestrator.storage.store import Stored
from tests.support.work import PLAN, TEACHER, check, drive

NESTED = 3  # drivers within drivers


class Crash(BaseException):
    """The process is gone."""


class MemoryS3:
    """Objects under keys. Something may happen at each change: `events` says what, by its number."""

    url = "memory"

    def __init__(self, events: Mapping[int, str]) -> None:
        self.objects = dict[str, bytes]()
        self.events, self._changes, self._drivers = events, 0, 0

    def put_if_absent(self, key: str, data: bytes) -> bool:
        event = self._event()
        is_first = key not in self.objects
        self.objects.setdefault(key, bytes(data))
        self._crash_after(event)
        return is_first and event != "lost answer"

    def write(self, key: str, data: bytes | memoryview) -> None:
        assert key not in self.objects
        event = self._event()
        self.objects[key] = bytes(data)
        self._crash_after(event)

    def delete(self, key: str) -> None:
        event = self._event()
        del self.objects[key]
        self._crash_after(event)

    def read(self, key: str) -> bytes:
        if key not in self.objects:
            raise FileNotFoundError(key)
        return self.objects[key]

    def read_range(self, key: str, offset: int, length: int) -> bytes:
        return self.read(key)[offset : offset + length]

    def read_many(self, keys: Sequence[str]) -> list[bytes]:
        return [self.read(key) for key in keys]

    def size(self, key: str) -> int:
        return len(self.read(key))

    def keys(self, folder: str) -> list[str]:
        return sorted(key for key in self.objects if key.rpartition("/")[0] == folder)

    def files(self) -> list[Stored]:
        return [Stored(key, len(data), 1e9) for key, data in sorted(self.objects.items())]

    def sweep(self, age_s: float) -> int:
        return 0

    def free_bytes(self) -> float:
        return 1e9

    def _event(self) -> str:
        """What happens at this change; another driver may do all its work just before it."""
        event = self.events.get(self._changes, "")
        self._changes += 1
        if event == "another driver" and self._drivers < NESTED:
            self._drivers += 1
            try:
                drive(CommitLog(self, PLAN, TEACHER))
            except Crash:
                pass
            self._drivers -= 1
        if event == "crash before":
            raise Crash
        return event

    def _crash_after(self, event: str) -> None:
        if event == "crash after":
            raise Crash


@functools.cache
def undisturbed() -> str:
    return drive(CommitLog(MemoryS3({}), PLAN, TEACHER)).content_hash


@settings(max_examples=150, deadline=None)
@given(
    st.dictionaries(
        st.integers(0, 40), st.sampled_from(["crash before", "crash after", "lost answer", "another driver"])
    )
)
def test_every_sample_ends_up_in_the_data_set_exactly_once(events: dict[int, str]) -> None:
    store = MemoryS3(events)
    commit_log = CommitLog(store, PLAN, TEACHER)
    records = dict[str, bytes]()
    published = dict[int, Manifest]()
    while True:
        try:
            drive(commit_log)
            break
        except Crash:
            now = {key: data for key, data in store.objects.items() if key.startswith(("commits/", "manifest/"))}
            assert records.items() <= now.items()  # what was decided stays
            records = now
            published |= {version: commit_log.manifest(version) for version in commit_log.versions()}
    check(commit_log, undisturbed())
    for version, manifest in published.items():
        assert commit_log.manifest(version) == manifest
    store.events = {}
    commit_log.clean(0.0)
    assert len(store.keys("conditions")) == 1  # no attempt that lost is left
    assert all(len(store.keys(f"shards/{commit.name}")) == 1 for commit in commit_log.newest().shards)
    check(commit_log, undisturbed())
