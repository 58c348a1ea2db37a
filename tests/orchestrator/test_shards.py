from __future__ import annotations

import functools
from pathlib import Path

import pytest
import torch

from orchestrator.cache import Uncached
from orchestrator.records import Damaged, seal, unseal
from orchestrator.shards import Columns, FileRecord, ShardReader, content_digest, encode
from orchestrator.store import LocalStore

COMPLAINT = functools.partial(Damaged, "the shard", "mend it")
KEY = "shards/a.parquet"


@pytest.fixture
def columns() -> Columns:
    generator = torch.Generator().manual_seed(0)
    return {
        "sample_id": torch.arange(10),
        "guidance_scale": torch.rand(10, generator=generator),
        "path": torch.randn(10, 3, 4, 8, 8, generator=generator).half(),
        "embedding": torch.randn(10, 5, generator=generator).bfloat16(),
    }


def written(columns: Columns, root: Path) -> tuple[LocalStore, FileRecord]:
    store = LocalStore(root)
    data, record = encode(columns, 4, {"times": [999.0, -1.0]})
    store.write(KEY, data)
    return store, record


def reader_of(store: LocalStore, record: FileRecord) -> ShardReader:
    return ShardReader(store, KEY, record, COMPLAINT, Uncached())


def test_rows_come_back_bit_for_bit(columns: Columns, tmp_path: Path) -> None:
    reader = reader_of(*written(columns, tmp_path))
    again = reader.read()
    assert list(again) == list(columns)
    for name, value in columns.items():
        assert again[name].dtype == value.dtype and torch.equal(again[name], value)
    assert reader.num_row_groups == 3 and len(reader.row_group(2)["path"]) == 2
    assert reader.about["times"] == [999.0, -1.0]


def test_equal_rows_are_equal_bytes(columns: Columns) -> None:
    assert bytes(encode(columns, 4, {})[0]) == bytes(encode(columns, 4, {})[0])


def test_content_depends_on_ids_and_tensors_but_not_on_the_file(columns: Columns) -> None:
    digest = content_digest(columns)
    assert encode(columns, 3, {})[1].content == encode(columns, 10, {"a": 1})[1].content == digest
    assert content_digest(columns | {"sample_id": columns["sample_id"] + 1}) != digest
    assert content_digest(columns | {"path": columns["path"].flip(0)}) != digest


def test_a_flipped_bit_anywhere_is_noticed(columns: Columns, tmp_path: Path) -> None:
    store, record = written(columns, tmp_path)
    file = tmp_path / KEY
    whole = file.read_bytes()
    for place in range(4, len(whole), 97):
        file.write_bytes(whole[:place] + bytes([whole[place] ^ 4]) + whole[place + 1 :])
        with pytest.raises(Damaged, match="has changed"):
            reader_of(store, record).read()
        with pytest.raises(Damaged, match="has changed"):
            reader_of(store, record).verify()


def test_only_the_row_group_with_the_flipped_bit_is_refused(columns: Columns, tmp_path: Path) -> None:
    store, record = written(columns, tmp_path)
    file, place = tmp_path / KEY, record.row_groups[1].offset + 100
    whole = file.read_bytes()
    file.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
    reader = reader_of(store, record)
    reader.row_group(0)
    with pytest.raises(Damaged, match="the shard has changed .* mend it"):
        reader.row_group(1)


@pytest.mark.parametrize("size", [0, 3, 500, -1])
def test_a_truncated_file_is_noticed_at_once(columns: Columns, tmp_path: Path, size: int) -> None:
    store, record = written(columns, tmp_path)
    file = tmp_path / KEY
    file.write_bytes(file.read_bytes()[:size])
    with pytest.raises(Damaged, match="is truncated"):
        reader_of(store, record)


def test_a_missing_file_is_noticed(columns: Columns, tmp_path: Path) -> None:
    store, record = written(columns, tmp_path)
    store.delete(KEY)
    with pytest.raises(Damaged, match="is gone"):
        reader_of(store, record)


def test_a_sealed_record_with_any_flipped_bit_is_refused() -> None:
    data = seal({"shard": "000001", "rows": 8, "sha256": "ab"})
    assert unseal(data, COMPLAINT) == {"shard": "000001", "rows": 8, "sha256": "ab"}
    for bit in range(8 * len(data)):
        flipped = bytearray(data)
        flipped[bit // 8] ^= 1 << bit % 8
        with pytest.raises(Damaged):
            unseal(bytes(flipped), COMPLAINT)
