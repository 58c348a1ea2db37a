from __future__ import annotations

import multiprocessing
import os
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import pytest

from fewstep.orchestrator.errors import BadInput
from fewstep.orchestrator.storage.local import LocalStore
from fewstep.orchestrator.storage.store import probe
from fewstep.orchestrator.storage.urls import open_store
from tests.support.full_disk import largest_file


def _race(root: Path, writer: int) -> list[bool]:
    store = LocalStore(root)
    return [store.put_if_absent(f"commits/{key}", str(writer).encode()) for key in range(50)]


def test_of_many_writers_one_wins_each_key(tmp_path: Path) -> None:
    with ProcessPoolExecutor(4, multiprocessing.get_context("spawn")) as processes:
        wins = list(processes.map(_race, [tmp_path] * 4, range(4)))
    store = LocalStore(tmp_path)
    for key in range(50):
        (winner,) = [writer for writer in range(4) if wins[writer][key]]
        assert store.read(f"commits/{key}") == str(winner).encode()
    assert len(os.listdir(tmp_path / "commits")) == 50  # and no temporary file is left


def test_a_second_put_changes_nothing(tmp_path: Path) -> None:
    store = LocalStore(tmp_path)
    assert store.put_if_absent("commits/a", b"first")
    assert not store.put_if_absent("commits/a", b"second")
    assert store.read("commits/a") == b"first"


def test_probe_leaves_nothing_behind(tmp_path: Path) -> None:
    probe(LocalStore(tmp_path), "commits")
    assert os.listdir(tmp_path / "commits") == []


class Overwriting(LocalStore):
    """A place whose put-if-absent does not keep its word, as some object stores' gateways."""

    def put_if_absent(self, key: str, data: bytes) -> bool:
        self._make(self._path(key).parent)
        self._path(key).write_bytes(data)
        return True


def test_probe_refuses_a_place_that_overwrites(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="choose another place"):
        probe(Overwriting(tmp_path), "commits")


def test_probe_refuses_a_folder_within_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(BadInput, match="choose another place"):
        probe(LocalStore(tmp_path / "file"), "commits")


@pytest.mark.parametrize("key", ["../a", "a/../b", "/a", "a//b", "a/.b", "a\n", "", "a b"])
def test_a_key_cannot_leave_the_store(tmp_path: Path, key: str) -> None:
    with pytest.raises(ValueError, match="is no key"):
        LocalStore(tmp_path).read(key)


def test_a_full_disk_leaves_no_file_and_says_so(tmp_path: Path) -> None:
    store = LocalStore(tmp_path)
    with largest_file(1000):
        for put in (store.write, store.put_if_absent):
            with pytest.raises(BadInput, match="no space left"):
                put("commits/a", bytes(5000))
    assert store.keys("commits") == [] and os.listdir(tmp_path / "commits") == []
    store.write("commits/a", bytes(5000))


def test_a_range_ends_where_the_file_ends(tmp_path: Path) -> None:
    store = LocalStore(tmp_path)
    store.write("a", b"0123456789")
    assert store.read_range("a", 8, 5) == b"89"
    assert store.size("a") == 10


@pytest.mark.parametrize("url", ["gs://bucket/place", "s3://key:hunter2@bucket/place", "s3://bucket/a?token=hunter2"])
def test_a_place_that_is_no_store_is_refused_without_repeating_its_password(url: str) -> None:
    with pytest.raises(BadInput, match="s3://bucket/folder") as refused:
        open_store(url)
    assert "hunter2" not in str(refused.value)


def test_a_single_writer_needs_no_put_if_absent(tmp_path: Path) -> None:
    store = open_store(str(tmp_path), single_writer=True)
    probe(store, "commits")
    assert store.put_if_absent("commits/a", b"first") and not store.put_if_absent("commits/a", b"second")
    assert store.read("commits/a") == b"first"


def test_sweeping_removes_what_dead_writers_left_and_nothing_else(tmp_path: Path) -> None:
    store = LocalStore(tmp_path)
    store.put_if_absent("commits/a", b"whole")
    (tmp_path / "commits" / f".{'0' * 32}").write_bytes(b"hal")
    (tmp_path / "commits" / ".mine").write_bytes(b"a note")
    assert store.sweep(60.0) == 0 and store.sweep(-1.0) == 1
    assert [stored.key for stored in store.files()] == ["commits/a"]
    assert (tmp_path / "commits" / ".mine").exists()
