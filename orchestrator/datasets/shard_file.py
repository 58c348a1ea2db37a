"""Writes and reads a Parquet file of rows: tensors as fixed-size binary, each byte range hashed, nothing unpickled."""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from fewstep.methods.lazy_torch import torch
from fewstep.orchestrator.datasets.sealed_records import MakeError
from fewstep.orchestrator.recipe.section import Json
from fewstep.orchestrator.storage.block_cache import Cache
from fewstep.orchestrator.storage.store import Data, Store

if TYPE_CHECKING:
    from torch import Tensor

Columns = dict[str, "Tensor"]  # each [rows, ...]; the first is the rows' id, ascending
ITEM_BYTES = {"int64": 8, "float16": 2, "bfloat16": 2, "float32": 4}  # of the dtypes that files hold, by torch's names
_SCALARS = {"int64": pa.int64(), "float32": pa.float32()}
_PHYSICAL = {"INT64": "int64", "FLOAT": "float32"}  # Parquet's words for those
_KEY = b"fewstep"  # of our part of the schema's metadata
_PIECE = 1 << 24
_HEADER = 40  # bytes of a column's only page before its values, at most; two pages take more
_OVERHEAD = 4096  # bytes of a column in a row group beside its values, or in the schema, at most
_PAGE = (1 << 31) - 1  # bytes of a page, at most


@dataclass(frozen=True)
class RowGroupRecord:
    """A range of bytes of a file: a row group, or the footer with no rows."""

    offset: int
    length: int
    rows: int
    sha256: str


@dataclass(frozen=True)
class Field:
    """A column as the footer describes it."""

    shape: tuple[int, ...]  # of a row
    dtype: str  # by its name, one of ITEM_BYTES

    @property
    def width(self) -> int:
        """Bytes of a row."""
        return math.prod(self.shape) * ITEM_BYTES[self.dtype]


@dataclass(frozen=True)
class FileRecord:
    """What a commit knows of a file: enough to notice any change, and to read a part and check just that."""

    sha256: str
    bytes: int
    rows: int
    row_groups: tuple[RowGroupRecord, ...]
    footer: RowGroupRecord
    content: str  # SHA-256 over (id, tensor bytes) of all rows in order; the same rows give it in any file format

    def wrong_size(self, size: int) -> str:
        """What is wrong with a file of this size, or nothing."""
        word = "is truncated" if size < self.bytes else "has grown"
        return "" if size == self.bytes else f"{word}: {size} bytes where its commit says {self.bytes}"

    def wrong_rows(self, row_bytes: int) -> str:
        """What is wrong with a file whose rows take so many bytes at least, or nothing."""
        groups = self.row_groups
        fits = all(0 < group.rows * row_bytes <= group.length <= self.bytes for group in groups)
        is_whole = self.rows == sum(group.rows for group in groups)
        return "" if fits and is_whole else f"claims {self.rows} rows of {row_bytes} bytes in {self.bytes} bytes"


def encode(columns: Columns, rows_per_group: int, about: Json) -> tuple[memoryview, FileRecord]:
    """A Parquet file in memory, and its record. `about` goes into the schema's metadata.

    A column of one number per row is stored as that, any other as the bytes of its tensors; either way as one plain
    page per row group, so that its values lie there as they do in memory.
    """
    tensors = {
        name: {"shape": list(value.shape[1:]), "dtype": _dtype_name(value)}
        for name, value in columns.items()
        if value.ndim > 1
    }
    metadata = json.dumps({**about, "tensors": tensors}, sort_keys=True)
    table = pa.table({name: _array(value) for name, value in columns.items()})
    groups = math.ceil(table.num_rows / rows_per_group)
    overhead = _OVERHEAD * table.num_columns * (groups + 1) + len(metadata)
    buffer = np.empty(table.nbytes + overhead, np.uint8)  # never grown
    sink = pa.FixedSizeBufferWriter(pa.py_buffer(buffer))
    with pq.ParquetWriter(
        sink,
        table.schema,
        compression="none",
        use_dictionary=False,
        write_statistics=False,
        store_schema=False,  # so that there is nothing for a reader to deserialise but Parquet itself
        data_page_size=_PAGE,
        max_rows_per_page=rows_per_group,
    ) as writer:
        writer.write_table(table, row_group_size=rows_per_group)
        writer.add_key_value_metadata({_KEY: metadata})
    data = buffer.data[: sink.tell()]
    return data, _record(data, content_digest(columns))


def torch_dtype(name: str) -> torch.dtype:
    """The dtype of one of ITEM_BYTES."""
    return getattr(torch, name)


def content_digest(columns: Columns) -> str:
    """SHA-256 over (id, tensor bytes) of each row in order."""
    whole = hashlib.sha256()
    ids, *_ = columns.values()
    tensors = [as_bytes(value) for value in columns.values() if value.ndim > 1]
    for row, id in enumerate(ids.tolist()):
        whole.update(id.to_bytes(8, "little", signed=True))
        for tensor in tensors:
            whole.update(tensor[row])
    return whole.hexdigest()


def as_bytes(rows: Tensor) -> np.ndarray:
    """The bytes of each row, [rows, bytes], without a copy of contiguous ones."""
    return rows.contiguous().view(len(rows), -1).view(torch.uint8).numpy()


class ShardReader:
    """Reads row groups of a committed file; what is read is checked against the commit before it is parsed.

    Raises what `make_error` makes, from the start or from any read, where the file is not what was committed, or was
    made to claim more rows than it has bytes for.
    """

    def __init__(self, store: Store, key: str, record: FileRecord, make_error: MakeError, cache: Cache) -> None:
        self._store, self._key, self.record, self._make_error, self._cache = store, key, record, make_error, cache
        self._check_size()
        try:  # Parquet finds its footer from a file's end, so the footer alone reads like a whole file.
            self._metadata = pq.read_metadata(pa.BufferReader(self._block(record.footer, check=True)))
        except pa.ArrowException as error:
            raise make_error(f"has a footer that Parquet cannot read ({error})") from None
        self.about: Json = json.loads((self._metadata.metadata or {}).get(_KEY, b"{}"))
        self._fields = {name: self._field(index) for index, name in enumerate(self._metadata.schema.names)}
        if self._metadata.num_row_groups != len(record.row_groups):
            raise make_error(f"holds {self._metadata.num_row_groups} row groups, not those of its commit")
        self._starts = [self._starts_of(index) for index in range(len(record.row_groups))]

    @property
    def num_row_groups(self) -> int:
        """How many row groups the file has."""
        return len(self.record.row_groups)

    def row_group(self, index: int, *, check: bool = True) -> Columns:
        """The rows of one row group, as views of what was read: any alignment, and not to be written to.

        `check=False` trusts bytes that this process has checked before.
        """
        block = self.record.row_groups[index]
        data, starts = pa.py_buffer(self._block(block, check=check)), self._starts[index]
        return {name: _view(data, starts[name], block.rows, field) for name, field in self._fields.items()}

    def read(self) -> Columns:
        """Read all rows into memory of their own."""
        groups = [self.row_group(index) for index in range(self.num_row_groups)]
        return {name: torch.cat([group[name] for group in groups]) for name in groups[0]}

    def verify(self) -> None:
        """Check every byte against the hash of the whole file."""
        digest = hashlib.sha256()
        for offset in range(0, self.record.bytes, _PIECE):
            digest.update(self._store.read_range(self._key, offset, _PIECE))
        if digest.hexdigest() != self.record.sha256:
            raise self._make_error("has changed since it was written: its hash is another")

    def _check_size(self) -> None:
        try:
            size = self._store.size(self._key)
        except FileNotFoundError:
            raise self._make_error("is gone") from None
        if wrong := self.record.wrong_size(size):
            raise self._make_error(wrong)
        for block in (*self.record.row_groups, self.record.footer):
            if not 0 <= block.offset <= block.offset + block.length <= size:
                raise self._make_error(
                    f"has {size} bytes, where its commit claims {block.length} from {block.offset} on"
                )

    def _block(self, block: RowGroupRecord, *, check: bool) -> Data:
        try:
            data = self._cache.get(block.sha256, lambda: self._store.read_range(self._key, block.offset, block.length))
        except FileNotFoundError:
            raise self._make_error("is gone") from None
        if len(data) < block.length:
            raise self._make_error(f"is truncated: it ends after byte {block.offset + len(data)}")
        if check and hashlib.sha256(data).hexdigest() != block.sha256:
            end = block.offset + block.length
            raise self._make_error(f"has changed since it was written, within bytes {block.offset} to {end}")
        return data

    def _field(self, index: int) -> Field:
        """Shape and dtype of a column, as the metadata says and the column's width confirms."""
        column, tensors = self._metadata.schema.column(index), self.about.get("tensors")
        if column.physical_type in _PHYSICAL:
            return Field((), _PHYSICAL[column.physical_type])
        kind = column.physical_type
        if not (isinstance(tensors, dict) and column.name in tensors and kind == "FIXED_LEN_BYTE_ARRAY"):
            raise self._make_error(f"has a column {column.name!r} of type {kind}, which fewstep never writes")
        field = Field(tuple(tensors[column.name]["shape"]), tensors[column.name]["dtype"])
        if field.width != column.length:
            raise self._make_error(f"has a column {column.name!r} whose width is not that of its shape {field.shape}")
        return field

    def _starts_of(self, index: int) -> dict[str, int]:
        """Where each column's values begin in a row group: they end its one page, as it is neither coded nor packed."""
        group, block, starts = self._metadata.row_group(index), self.record.row_groups[index], {}
        for column, (name, field) in enumerate(self._fields.items()):
            chunk, size = group.column(column), block.rows * field.width
            header = chunk.total_compressed_size - size
            starts[name] = chunk.data_page_offset - block.offset + header
            is_within = 0 <= starts[name] <= block.length - size
            if not (group.num_rows == chunk.num_values == block.rows and 0 < header <= _HEADER and is_within):
                claim = f"{group.num_rows} rows of {field.width} bytes in {chunk.total_compressed_size} bytes"
                raise self._make_error(f"claims {claim} for column {name!r} of row group {index}, which cannot be")
        return starts


def _record(data: memoryview, content: str) -> FileRecord:
    metadata = pq.read_metadata(pa.BufferReader(data))
    groups = []
    for index in range(metadata.num_row_groups):
        group = metadata.row_group(index)
        chunks = [group.column(column) for column in range(group.num_columns)]
        offset = min(chunk.data_page_offset for chunk in chunks)
        length = sum(chunk.total_compressed_size for chunk in chunks)
        groups.append(_block(data, offset, length, group.num_rows))
    end = groups[-1].offset + groups[-1].length
    return FileRecord(
        sha256=hashlib.sha256(data).hexdigest(),
        bytes=len(data),
        rows=metadata.num_rows,
        row_groups=tuple(groups),
        footer=_block(data, end, len(data) - end, 0),
        content=content,
    )


def _block(data: memoryview, offset: int, length: int, rows: int) -> RowGroupRecord:
    return RowGroupRecord(offset, length, rows, hashlib.sha256(data[offset : offset + length]).hexdigest())


def _view(data: pa.Buffer, start: int, rows: int, field: Field) -> Tensor:
    """Rows of a column within a buffer, without a copy."""
    values = pa.UInt8Array.from_buffers(pa.uint8(), rows * field.width, [None, data], offset=start)
    return torch.from_dlpack(values).view(torch_dtype(field.dtype)).view(rows, *field.shape)


def _dtype_name(tensor: Tensor) -> str:
    name = str(tensor.dtype).removeprefix("torch.")
    if name not in ITEM_BYTES:
        raise ValueError(f"a shard holds tensors of {', '.join(ITEM_BYTES)}, not of {name}")
    return name


def _array(value: Tensor) -> pa.Array:
    if value.ndim == 1:
        return pa.array(value.numpy(), _SCALARS[_dtype_name(value)])
    rows = as_bytes(value)
    return pa.FixedSizeBinaryArray.from_buffers(pa.binary(rows.shape[1]), len(rows), [None, pa.py_buffer(rows)])
