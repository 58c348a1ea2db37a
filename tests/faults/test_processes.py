"""Real processes that are killed and stopped in the middle of a commit, on a real disk."""

from __future__ import annotations

import multiprocessing
import os
import random
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest
import torch

from fewstep.orchestrator.datasets.commit_log import CommitLog, open_commit_log
from fewstep.orchestrator.datasets.dataset import Dataset
from fewstep.orchestrator.datasets.manifest import Manifest
from fewstep.orchestrator.errors import BadInput
from fewstep.orchestrator.storage.local import LocalStore
from tests.support.work import PLAN, SHARDS, TEACHER, check, commit, drive, opened

FORK = multiprocessing.get_context("fork")  # of a process that has torch loaded: starts at once


class Halting(LocalStore):
    """Stands still at one point of a commit, and says that it got there."""

    def __init__(self, root: Path, point: str, barrier: Path) -> None:
        super().__init__(root)
        self._point, self._barrier = point, barrier

    def write(self, key: str, data: bytes | memoryview) -> None:
        self._halt("before the write")
        if self._point == "in the write":
            with self._created(self._path_of(key)) as stream:
                stream.write(data[: len(data) // 2])
                stream.flush()
                self._halt("in the write")
        super().write(key, data)
        self._halt("after the write")

    def put_if_absent(self, key: str, data: bytes) -> bool:
        self._halt("before the commit")
        first = super().put_if_absent(key, data)
        self._halt("after the commit")
        return first

    def _path_of(self, key: str) -> Path:
        path = self._path(key)
        self._make(path.parent)
        return path

    def _halt(self, point: str) -> None:
        if point == self._point:
            self._barrier.write_text("here")
            while self._barrier.exists():
                time.sleep(0.01)


@pytest.fixture
def commit_log(tmp_path: Path) -> CommitLog:
    """A data set with its conditions and no shard."""
    made = opened(str(tmp_path / "store"))
    drive(made, [])
    return made


@pytest.fixture(scope="module")
def content(tmp_path_factory: pytest.TempPathFactory) -> str:
    return drive(opened(str(tmp_path_factory.mktemp("undisturbed")))).content_hash


def started(act: Callable[[], object]) -> BaseProcess:
    process = FORK.Process(target=act, daemon=True)
    process.start()
    return process


def halted(commit_log: CommitLog, point: str, barrier: Path) -> BaseProcess:
    """A process that makes the first shard and stands still at a point."""
    store = Halting(Path(commit_log.url), point, barrier)
    process = started(lambda: commit(CommitLog(store, PLAN, TEACHER), SHARDS[0]))
    while not barrier.exists():
        assert process.is_alive()
        time.sleep(0.01)
    return process


def kill(process: BaseProcess) -> None:
    assert process.pid is not None
    os.kill(process.pid, signal.SIGKILL)
    process.join()


POINTS = ("before the write", "in the write", "after the write", "before the commit", "after the commit")


@pytest.mark.parametrize("point", POINTS)
def test_an_actor_killed_at_any_point_of_a_commit_costs_one_shard_at_most(
    commit_log: CommitLog, content: str, tmp_path: Path, point: str
) -> None:
    kill(halted(commit_log, point, tmp_path / "barrier"))
    assert commit_log.has(SHARDS[0], 0) == (point == "after the commit")
    manifest = commit_log.newest()
    drive(commit_log)
    check(commit_log, content)
    assert commit_log.manifest(manifest.version) == manifest
    commit_log.clean(-1.0)
    assert len(commit_log.store.keys(f"shards/{SHARDS[0]}")) == 1
    check(commit_log, content)


def test_a_driver_killed_twenty_times_at_random_ends_like_an_undisturbed_one(
    commit_log: CommitLog, content: str, tmp_path: Path
) -> None:
    chance = random.Random(0)
    began = time.perf_counter()
    drive(opened(str(tmp_path / "timed")))
    whole_s = time.perf_counter() - began
    for _ in range(20):
        process = started(lambda: drive(open_commit_log(commit_log.url)))
        time.sleep(chance.uniform(0, whole_s / 4))
        kill(process)
    drive(commit_log)
    check(commit_log, content)


def test_drivers_that_race_on_one_place_agree(commit_log: CommitLog, content: str) -> None:
    racing = [started(lambda: drive(open_commit_log(commit_log.url))) for _ in range(4)]
    for process in racing:
        process.join(120)
        assert process.exitcode == 0
    check(commit_log, content)
    assert all(len(commit_log.store.keys(f"shards/{name}")) == 1 for name in SHARDS)  # losers take theirs away


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of a megabyte."""
    place = tmp_path / "disk"
    place.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "fewstep", str(place)], capture_output=True)
    if mounted.returncode:
        pytest.skip("mounting a small disk needs rights that this process lacks")
    yield place
    subprocess.run(["umount", str(place)], check=True)


@pytest.mark.parametrize("kept", range(4, 36, 4))
def test_a_full_disk_loses_nothing_and_the_same_call_goes_on(small_disk: Path, content: str, kept: int) -> None:
    commit_log = opened(str(small_disk / "store"))
    drive(commit_log, [])
    ballast = small_disk / "ballast"
    left = os.statvfs(small_disk)
    ballast.write_bytes(bytes(left.f_bavail * left.f_frsize - kept * 1024))
    with pytest.raises(BadInput, match="full"):
        drive(commit_log)
    commits, broken = commit_log.commits()
    assert not broken
    for made in commits.values():
        commit_log.reader(made).read()  # what is committed is whole
    ballast.unlink()
    drive(commit_log)
    check(commit_log, content)


def test_an_actor_that_wakes_up_after_it_was_replaced_changes_nothing(
    commit_log: CommitLog, content: str, tmp_path: Path
) -> None:
    barrier = tmp_path / "barrier"
    zombie = halted(commit_log, "before the commit", barrier)
    assert zombie.pid is not None
    os.kill(zombie.pid, signal.SIGSTOP)
    drive(commit_log)
    winner = commit_log.newest_commit(SHARDS[0])
    barrier.unlink()
    os.kill(zombie.pid, signal.SIGCONT)
    zombie.join(60)
    assert zombie.exitcode == 0  # it took over the winner's
    assert commit_log.newest_commit(SHARDS[0]) == winner
    assert commit_log.store.keys(f"shards/{SHARDS[0]}") == [winner.file_key]
    check(commit_log, content)


def test_readers_keep_the_version_that_they_pinned_while_it_is_repaired(commit_log: CommitLog) -> None:
    before = drive(commit_log)
    expected = [torch.cat([Dataset.open(commit_log.url, before.version).row_groups().read(0)["path"]])]
    stop, wrong = threading.Event(), list[str]()

    def read() -> None:
        while not stop.is_set():
            dataset = Dataset.open(commit_log.url, before.version)
            if dataset.manifest != before or not torch.equal(dataset.row_groups().read(0)["path"], expected[0]):
                wrong.append("another version")

    readers = [threading.Thread(target=read) for _ in range(2)]
    for reader in readers:
        reader.start()
    versions = list[Manifest]()
    for revision in (1, 2, 3):
        (Path(commit_log.url) / commit_log.newest_commit(SHARDS[1]).file_key).write_bytes(b"rot")
        commits, _ = commit_log.commits()
        versions.append(commit_log.publish(commits | {SHARDS[1]: commit(commit_log, SHARDS[1], revision)}))
    stop.set()
    for reader in readers:
        reader.join()
    assert not wrong
    assert {manifest.content_hash for manifest in versions} == {before.content_hash}
    assert commit_log.verify().broken == ()
