"""One Parquet file of rows: tensors as fixed-size binary, every byte range hashed, nothing ever unpickled."""

from __future__ import annotations

import hashlib
import io
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor

from orchestrator.cache import Cache
from orchestrator.recipe import Json
from orchestrator.records import Complaint
from orchestrator.store import Store

Columns = dict[str, Tensor]  # each [rows, ...]; the first is the rows' id, ascending
DTYPES = {"int64": torch.int64, "float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32}
_SCALARS = {torch.int64: pa.int64(), torch.float32: pa.float32()}
_NAMES = {dtype: name for name, dtype in DTYPES.items()}
_KEY = b"fewstep"  # of our part of the schema's metadata
_PIECE = 1 << 24


@dataclass(frozen=True)
class Block:
    """A range of bytes of a file: a row group, or the footer with no rows."""

    offset: int
    length: int
    rows: int
    sha256: str


@dataclass(frozen=True)
class FileRecord:
    """What a commit knows of a file: enough to notice any change, and to read a part and check just that."""

    sha256: str
    bytes: int
    rows: int
    row_groups: tuple[Block, ...]
    footer: Block
    content: str  # SHA-256 over (id, tensor bytes) of all rows in order; the same rows give it in any file format

    def wrong_size(self, size: int) -> str:
        """What is wrong with a file of this size, or nothing."""
        word = "is truncated" if size < self.bytes else "has grown"
        return "" if size == self.bytes else f"{word}: {size} bytes where its commit says {self.bytes}"


def encode(columns: Columns, rows_per_group: int, about: Json) -> tuple[memoryview, FileRecord]:
    """A Parquet file in memory, and its record. `about` goes into the schema's metadata.

    A column of one number per row is stored as that, any other as the bytes of its tensors.
    """
    tensors = {
        name: {"shape": list(value.shape[1:]), "dtype": _NAMES[value.dtype]}
        for name, value in columns.items()
        if value.ndim > 1
    }
    table = pa.table({name: _array(value) for name, value in columns.items()})
    sink = pa.BufferOutputStream()
    # Without the Arrow schema in the file there is nothing for a reader to deserialise but Parquet itself.
    options = {"compression": "none", "use_dictionary": False, "write_statistics": False, "store_schema": False}
    with pq.ParquetWriter(sink, table.schema, **options) as writer:
        writer.write_table(table, row_group_size=rows_per_group)
        writer.add_key_value_metadata({_KEY: json.dumps({**about, "tensors": tensors}, sort_keys=True)})
    data = memoryview(sink.getvalue())
    return data, _record(data, content_digest(columns))


def content_digest(columns: Columns) -> str:
    """SHA-256 over (id, tensor bytes) of each row in order."""
    whole = hashlib.sha256()
    ids, *_ = columns.values()
    tensors = [_bytes(value) for value in columns.values() if value.ndim > 1]
    for row, id in enumerate(ids.tolist()):
        whole.update(id.to_bytes(8, "little", signed=True))
        for tensor in tensors:
            whole.update(tensor[row])
    return whole.hexdigest()


class ShardReader:
    """Reads row groups of a committed file; what is read is checked against the commit before it is parsed.

    Raises the complaint, from the start or from any read, where the file is not what was committed.
    """

    def __init__(self, store: Store, key: str, record: FileRecord, complaint: Complaint, cache: Cache) -> None:
        self._store, self._key, self.record, self._complaint, self._cache = store, key, record, complaint, cache
        self._check_size()
        # Parquet finds its footer from a file's end, so the footer alone reads like a whole file.
        self._metadata = pq.read_metadata(pa.BufferReader(self._block(record.footer, check=True)))
        if [self._metadata.row_group(i).num_rows for i in range(self._metadata.num_row_groups)] != [
            group.rows for group in record.row_groups
        ]:
            raise self._complaint(f"holds {self._metadata.num_rows} rows in groups other than its commit's")
        schema = self._metadata.schema.to_arrow_schema()
        self.about: Json = json.loads((self._metadata.metadata or {}).get(_KEY, b"{}"))
        self._tensors = _checked_tensors(schema, self.about)

    @property
    def num_row_groups(self) -> int:
        """How many there are."""
        return len(self.record.row_groups)

    def row_group(self, index: int, *, check: bool = True) -> Columns:
        """The rows of one row group. `check=False` trusts bytes that this process has checked before."""
        block = self.record.row_groups[index]
        window = _Window({block.offset: self._block(block, check=check)}, self.record.bytes)
        with pq.ParquetFile(pa.PythonFile(window, mode="r"), metadata=self._metadata, pre_buffer=False) as file:
            table = file.read_row_group(index, use_threads=False)
        return {name: self._column(name, table.column(name)) for name in table.column_names}

    def read(self) -> Columns:
        """All rows."""
        groups = [self.row_group(index) for index in range(self.num_row_groups)]
        return {name: torch.cat([group[name] for group in groups]) for name in groups[0]}

    def verify(self) -> None:
        """Check every byte."""
        digest = hashlib.sha256()
        for offset in range(0, self.record.bytes, _PIECE):
            digest.update(self._store.read_range(self._key, offset, _PIECE))
        if digest.hexdigest() != self.record.sha256:
            raise self._complaint("has changed since it was written: its hash is another")

    def _check_size(self) -> None:
        try:
            size = self._store.size(self._key)
        except FileNotFoundError:
            raise self._complaint("is gone") from None
        if wrong := self.record.wrong_size(size):
            raise self._complaint(wrong)

    def _block(self, block: Block, *, check: bool) -> bytes:
        try:
            data = self._cache.get(block.sha256, lambda: self._store.read_range(self._key, block.offset, block.length))
        except FileNotFoundError:
            raise self._complaint("is gone") from None
        if len(data) < block.length:
            raise self._complaint(f"is truncated: it ends after byte {block.offset + len(data)}")
        if check and hashlib.sha256(data).hexdigest() != block.sha256:
            end = block.offset + block.length
            raise self._complaint(f"has changed since it was written, within bytes {block.offset} to {end}")
        return data

    def _column(self, name: str, column: pa.ChunkedArray) -> Tensor:
        array = column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()  # which copies even one
        if name not in self._tensors:
            return torch.from_numpy(array.to_numpy(zero_copy_only=False).copy())
        shape, dtype = self._tensors[name]
        width = math.prod(shape) * dtype.itemsize
        held = pa.UInt8Array.from_buffers(pa.uint8(), len(array) * width, array.buffers(), offset=array.offset * width)
        return torch.from_dlpack(held).view(dtype).view(len(array), *shape)  # without a copy


class _Window(io.RawIOBase):
    """A file of which only some parts are at hand; Parquet is told no others."""

    def __init__(self, parts: Mapping[int, bytes], size: int) -> None:
        self._parts = {offset: memoryview(data) for offset, data in parts.items()}
        self._size, self._at = size, 0

    def size(self) -> int:
        """Of the whole file."""
        return self._size

    def seekable(self) -> bool:
        """As Python's files say it."""
        return True

    def readable(self) -> bool:
        """As Python's files say it."""
        return True

    def tell(self) -> int:
        """As Python's files say it."""
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """As Python's files do it."""
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size}[whence]
        self._at = start + offset
        return self._at

    def read(self, size: int = -1) -> memoryview:  # type: ignore[override]
        """Bytes that are at hand, without a copy. Raises ValueError where the footer points elsewhere."""
        for offset, part in self._parts.items():
            if offset <= self._at < offset + len(part):
                start = self._at - offset
                found = part[start:] if size < 0 else part[start : start + size]
                self._at += len(found)
                return found
        raise ValueError(f"a shard points outside of its row group, to byte {self._at}")


def _record(data: memoryview, content: str) -> FileRecord:
    metadata = pq.read_metadata(pa.BufferReader(data))
    groups = []
    for index in range(metadata.num_row_groups):
        group = metadata.row_group(index)
        chunks = [group.column(place) for place in range(group.num_columns)]
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


def _block(data: memoryview, offset: int, length: int, rows: int) -> Block:
    return Block(offset, length, rows, hashlib.sha256(data[offset : offset + length]).hexdigest())


def _bytes(value: Tensor) -> np.ndarray:
    """The bytes of a column, [rows, bytes of a row], without a copy."""
    return value.contiguous().flatten(1).view(torch.uint8).numpy()


def _array(value: Tensor) -> pa.Array:
    if value.ndim == 1:
        return pa.array(value.numpy(), _SCALARS[value.dtype])
    held = _bytes(value)
    return pa.FixedSizeBinaryArray.from_buffers(pa.binary(held.shape[1]), len(held), [None, pa.py_buffer(held)])


def _checked_tensors(schema: pa.Schema, about: Json) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
    """Shape and dtype of each tensor column, as the metadata says and the column's width confirms."""
    tensors = {}
    told = about.get("tensors")
    for field in schema:
        if field.type in _SCALARS.values():
            continue
        if not (isinstance(told, dict) and field.name in told and pa.types.is_fixed_size_binary(field.type)):
            raise ValueError(f"a shard has a column {field.name!r} of type {field.type}, which fewstep never writes")
        shape, dtype = tuple(told[field.name]["shape"]), DTYPES[told[field.name]["dtype"]]
        if math.prod(shape) * dtype.itemsize != field.type.byte_width:
            raise ValueError(f"a shard has a column {field.name!r} whose width is not that of its shape {shape}")
        tensors[field.name] = (shape, dtype)
    return tensors
