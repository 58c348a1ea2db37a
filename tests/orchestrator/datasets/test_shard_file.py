from __future__ import annotations

import dataclasses
import functools
import hashlib
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch

from fewstep.orchestrator.datasets.sealed_records import Damaged, seal, unseal
from fewstep.orchestrator.datasets.shard_file import Columns, FileRecord, ShardReader, as_bytes, content_digest, encode
from fewstep.orchestrator.storage.block_cache import Uncached
from fewstep.orchestrator.storage.local import LocalStore

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


def test_a_claim_of_more_rows_than_there_are_bytes_for_is_refused_before_anything_is_read(
    columns: Columns, tmp_path: Path
) -> None:
    """The hashes are right: a file that somebody made to exhaust its readers."""
    many, record = encode(
        {name: value.repeat(400, *[1] * (value.ndim - 1)) for name, value in columns.items()}, 4000, {}
    )
    footer, (group,) = bytes(many[record.footer.offset :]), record.row_groups
    small = bytes(many[:1000]) + footer
    LocalStore(tmp_path).write(KEY, small)

    def claimed(length: int) -> FileRecord:
        block = dataclasses.replace(group, length=length, sha256=hashlib.sha256(small[4 : 4 + length]).hexdigest())
        end = dataclasses.replace(record.footer, offset=1000)
        return dataclasses.replace(record, bytes=len(small), row_groups=(block,), footer=end)

    with pytest.raises(Damaged, match=r"claims 4000 rows of \d+ bytes in \d+ bytes for column .*, which cannot be"):
        reader_of(LocalStore(tmp_path), claimed(996))
    with pytest.raises(Damaged, match=f"has {len(small)} bytes, where its commit claims {group.length} from 4 on"):
        reader_of(LocalStore(tmp_path), claimed(group.length))
    assert record.wrong_rows(sum(value[0].nbytes for value in columns.values())) == ""
    assert claimed(996).wrong_rows(1588) == f"claims 4000 rows of 1588 bytes in {len(small)} bytes"


def test_a_footer_that_is_none_is_refused(columns: Columns, tmp_path: Path) -> None:
    store, record = written(columns, tmp_path)
    (tmp_path / KEY).write_bytes(bytes(record.bytes))
    footer = dataclasses.replace(record.footer, sha256=hashlib.sha256(bytes(record.footer.length)).hexdigest())
    with pytest.raises(Damaged, match="a footer that Parquet cannot read"):
        reader_of(store, dataclasses.replace(record, footer=footer))


def test_any_reader_of_parquet_reads_the_same_rows(columns: Columns, tmp_path: Path) -> None:
    store, record = written(columns, tmp_path)
    table, rows = pq.read_table(tmp_path / KEY), reader_of(store, record).read()
    for name, value in rows.items():
        stored = table.column(name).to_pylist()
        assert stored == (value.tolist() if value.ndim == 1 else [row.tobytes() for row in as_bytes(value)])


def test_a_sealed_record_with_any_flipped_bit_is_refused() -> None:
    data = seal({"shard": "000001", "rows": 8, "sha256": "ab"})
    assert unseal(data, COMPLAINT) == {"shard": "000001", "rows": 8, "sha256": "ab"}
    for bit in range(8 * len(data)):
        flipped = bytearray(data)
        flipped[bit // 8] ^= 1 << bit % 8
        with pytest.raises(Damaged):
            unseal(bytes(flipped), COMPLAINT)
