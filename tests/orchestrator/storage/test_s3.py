from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from s3fs import S3FileSystem

from fewstep.orchestrator.datasets.commit_log import CommitLog, create_commit_log, open_commit_log
from fewstep.orchestrator.datasets.dataset import Dataset
from fewstep.orchestrator.datasets.manifest import CONDITIONS
from fewstep.orchestrator.datasets.sealed_records import Damaged
from fewstep.orchestrator.errors import BadInput
from fewstep.orchestrator.generation.shard_makers import scalars
from fewstep.orchestrator.storage.block_cache import BlockCache
from fewstep.orchestrator.storage.store import probe
from fewstep.orchestrator.storage.urls import open_store


@pytest.fixture
def remote(finished: CommitLog, s3_url: str) -> CommitLog:
    """A data set in a bucket: the finished one's plan and rows."""
    commit_log = create_commit_log(s3_url, finished.plan, finished.prompts(), finished.teacher)
    conditions = {"condition_id": torch.arange(-1, 4), "prompt": torch.zeros(5, 2)}
    commit_log.commit(CONDITIONS, 0, conditions, {}, {"device": "test"})
    rows = Dataset.open(finished.url, 1).row_groups()
    for group, shard in enumerate(finished.plan.shards()):
        path = rows.read(group)["path"]
        columns = {**scalars(finished.plan, shard.samples), "path": path}
        commit_log.commit(shard.name, 0, columns, {"times": [999.0, -1.0]}, {"device": "test"})
    commit_log.publish(commit_log.commits()[0])
    return commit_log


def test_of_many_writers_one_wins_each_key(s3_url: str) -> None:
    def write(writer: int) -> list[bool]:
        store = open_store(s3_url)
        return [store.put_if_absent(f"commits/{key}", str(writer).encode()) for key in range(5)]

    with ThreadPoolExecutor(4) as writers:
        wins = list(writers.map(write, range(4)))
    found = open_store(s3_url).read_many([f"commits/{key}" for key in range(5)])
    for key in range(5):
        (winner,) = [writer for writer in range(4) if wins[writer][key]]
        assert found[key] == str(winner).encode()


def test_an_object_reads_like_a_file(s3_url: str) -> None:
    store = open_store(s3_url)
    probe(store, "commits")
    assert store.keys("commits") == [] and store.files() == []
    store.write("shards/00000000-00000008/a", memoryview(b"0123456789"))
    store.write("empty", b"")
    assert (store.read("shards/00000000-00000008/a"), store.read("empty")) == (b"0123456789", b"")
    assert (
        store.read_range("shards/00000000-00000008/a", 8, 5),
        store.read_range("shards/00000000-00000008/a", 10, 5),
    ) == (b"89", b"")
    assert store.keys("shards/00000000-00000008") == ["shards/00000000-00000008/a"] and store.keys("shards") == []
    assert [(stored.key, stored.bytes) for stored in store.files()] == [
        ("empty", 0),
        ("shards/00000000-00000008/a", 10),
    ]
    store.delete("shards/00000000-00000008/a")
    for read in (store.read, store.size):
        with pytest.raises(FileNotFoundError):
            read("shards/00000000-00000008/a")


def test_unfinished_uploads_are_swept(s3_url: str) -> None:
    store = open_store(s3_url)
    files = S3FileSystem(skip_instance_cache=True)
    prefix = s3_url.removeprefix("s3://bucket/")
    files.call_s3("create_multipart_upload", Bucket="bucket", Key=f"{prefix}/shards/00000000-00000008/a")
    files.call_s3("create_multipart_upload", Bucket="bucket", Key="somebody/elses")
    assert store.sweep(1e10) == 0 and store.sweep(60.0) == 1  # moto's uploads all began in 2010
    assert {upload["Key"] for upload in files.list_multipart_uploads("bucket")} >= {"somebody/elses"}


def test_a_bucket_that_is_not_there_is_refused(s3: str) -> None:
    with pytest.raises(BadInput, match="s3://nowhere/place .*bucket does not exist"):
        probe(open_store("s3://nowhere/place"), "commits")


@pytest.fixture
def stranger(s3: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A machine without credentials."""
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    S3FileSystem.clear_instance_cache()
    yield
    S3FileSystem.clear_instance_cache()


@pytest.mark.usefixtures("stranger")
def test_missing_credentials_are_named_with_the_mend(s3_url: str) -> None:
    with pytest.raises(BadInput, match="credentials .*AWS_PROFILE"):
        probe(open_store(s3_url), "commits")


def test_a_single_writer_looks_first(s3_url: str) -> None:
    store = open_store(s3_url, single_writer=True)
    assert store.put_if_absent("commits/a", b"first") and not store.put_if_absent("commits/a", b"second")
    assert store.read("commits/a") == b"first"


def test_a_data_set_in_a_bucket_is_the_one_in_a_folder(finished: CommitLog, remote: CommitLog) -> None:
    assert remote.newest().content_hash == finished.newest().content_hash
    assert remote.verify().broken == ()
    assert open_commit_log(remote.url).plan == finished.plan
    here, there = (Dataset.open(commit_log.url, 1).row_groups() for commit_log in (finished, remote))
    assert here.sizes == there.sizes
    assert torch.equal(here.read(2)["path"], there.read(2)["path"])


def test_damage_in_a_bucket_is_named(remote: CommitLog) -> None:
    first, second, third = remote.newest().shards
    data = remote.store.read(first.file_key)
    remote.store.write(first.file_key, data[:1000] + bytes([data[1000] ^ 1]) + data[1001:])
    remote.store.write(second.file_key, data[:-1])
    remote.store.delete(third.file_key)
    whys = {broken.shard: broken.why for broken in remote.verify().broken}
    assert (
        "hash is another" in whys["00000000-00000008"]
        and "truncated" in whys["00000008-00000016"]
        and whys["00000016-00000020"] == "is gone"
    )
    with pytest.raises(Damaged, match="shard 00000008-00000016"):
        Dataset.open(remote.url, 1).check()
    with pytest.raises(Damaged, match="shard 00000000-00000008 .* has changed"):
        Dataset.open(remote.url, 1).row_groups().read(0)


def test_what_was_read_from_a_bucket_is_kept_up_to_a_size(remote: CommitLog, tmp_path: Path) -> None:
    size = remote.newest().shards[0].file.bytes
    cache = BlockCache(tmp_path / "cache", 2.5 * size)
    once = [Dataset.open(remote.url, 1, cache).row_groups().read(group)["path"] for group in range(3)]
    assert sum(file.stat().st_size for file in (tmp_path / "cache").iterdir()) <= 2.5 * size
    for commit in remote.newest().shards:  # of the same size, so that only their bytes can tell
        remote.store.write(commit.file_key, bytes(commit.file.bytes))
    groups = Dataset.open(remote.url, 1, cache).row_groups()
    assert torch.equal(groups.read(2)["path"], once[2])
    with pytest.raises(Damaged):
        groups.read(0)  # which had to make room


def test_a_damaged_cache_is_fetched_again(remote: CommitLog, tmp_path: Path) -> None:
    cache = BlockCache(tmp_path / "cache", 1e9)
    once = Dataset.open(remote.url, 1, cache).row_groups().read(0)["path"]
    for file in (tmp_path / "cache").iterdir():
        file.write_bytes(b"rot")
    assert torch.equal(Dataset.open(remote.url, 1, cache).row_groups().read(0)["path"], once)
