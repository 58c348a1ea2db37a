"""Real pictures, from Parquet in Hugging Face's format or from a folder, with what each of them shows."""

from __future__ import annotations

import hashlib
import io
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from PIL import Image, ImageOps
from torch import Tensor

from orchestrator.checkpoint import file_hash
from orchestrator.errors import BadInput, nearest
from orchestrator.prompts import READERS

SUFFIXES = (".bmp", ".jpeg", ".jpg", ".png", ".webp")
METADATA = ("metadata.csv", "metadata.jsonl")  # as Hugging Face's imagefolder has them


class Images(ABC):
    """Pictures in an order. `place` is where they are, `field` the recipe's that says so."""

    def __init__(self, place: str, field: str) -> None:
        self.place, self.field = place, field

    @abstractmethod
    def __len__(self) -> int: ...

    @property
    @abstractmethod
    def files(self) -> list[Path]:
        """All that the pictures and their captions are read from."""

    @abstractmethod
    def has(self, column: str) -> bool:
        """Whether a column says something of the pictures."""

    @abstractmethod
    def captions(self, column: str) -> list[str]:
        """What a column says of each picture; a class is its number. Raises BadInput where it says nothing."""

    @abstractmethod
    def _encoded(self, rows: range) -> Iterator[tuple[str, bytes]]:
        """Each picture's name and file."""

    def pixels(self, rows: range, size: int) -> Tensor:
        """Some of them [n, 3, size, size] in 0..1, cut square. Raises BadInput with the first that is none."""
        return torch.stack([self._square(name, data, size) for name, data in self._encoded(rows)])

    def digest(self) -> str:
        """SHA-256 of the one file, or over names and bytes of all."""
        root = Path(self.place)
        if root.is_file():
            return file_hash(root)
        named = [(file.relative_to(root).as_posix(), file_hash(file)) for file in self.files]
        return hashlib.sha256(repr(named).encode()).hexdigest()

    def _square(self, name: str, data: bytes, size: int) -> Tensor:
        try:
            picture = ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB")
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
            raise self._bad(f"{name} of {self.place} cannot be read as an image ({error}); take it out") from None
        side = min(picture.size)
        left, top = (picture.width - side) // 2, (picture.height - side) // 2
        picture = picture.crop((left, top, left + side, top + side))
        if side != size:
            picture = picture.resize((size, size), Image.Resampling.LANCZOS)
        return torch.from_numpy(np.array(picture)).permute(2, 0, 1).float() / 255

    def _bad(self, why: str) -> BadInput:
        return BadInput(f"{self.field}: {why}")


def open_images(place: str, field: str) -> Images:
    """The pictures of a Parquet file, of a folder of such files, or of a folder of image files.

    Raises BadInput where there are none.
    """
    path = Path(place)
    parquet = [path] if path.is_file() else sorted(path.glob("*.parquet"))
    found = ParquetImages(place, field, parquet) if parquet else ImageFolder(place, field)
    if not len(found):
        raise BadInput(f"{field}: {place} holds no image; give Parquet with a column `image`, or a folder of images")
    return found


def captions_of(images: Images, column: str) -> list[str]:
    """What each is conditioned on; nothing at all without a column."""
    return images.captions(column) if column else [""] * len(images)


class ParquetImages(Images):
    """A column `image` of {bytes, path}, or of bytes."""

    def __init__(self, place: str, field: str, files: Sequence[Path]) -> None:
        super().__init__(place, field)
        self._files = list(files)
        try:
            self._parquet = [pq.ParquetFile(file) for file in files]
        except (OSError, ValueError) as error:
            why = " ".join(str(error).split())
            raise self._bad(f"{place} cannot be read as Parquet: {why}") from None
        self._check_column("image", "")

    def __len__(self) -> int:
        return sum(parquet.metadata.num_rows for parquet in self._parquet)

    @property
    def files(self) -> list[Path]:
        """The Parquet files."""
        return self._files

    def has(self, column: str) -> bool:
        """Of the first file; the others have the same."""
        return column in self._parquet[0].schema_arrow.names

    def captions(self, column: str) -> list[str]:
        """The column as text."""
        self._check_column(column, "; name another, or none, in data.caption_column")
        read = pa.concat_tables([parquet.read([column]) for parquet in self._parquet]).column(column)
        if read.null_count or not (pa.types.is_integer(read.type) or pa.types.is_string(read.type)):
            raise self._bad(f"the column {column!r} of {self.place} must hold text or a class's number in every row")
        return [str(value).strip() for value in read.to_pylist()]

    def _encoded(self, rows: range) -> Iterator[tuple[str, bytes]]:
        start = 0
        for parquet in self._parquet:
            for group in range(parquet.num_row_groups):
                count = parquet.metadata.row_group(group).num_rows
                wanted = range(max(rows.start, start), min(rows.stop, start + count))
                if wanted:
                    cells = parquet.read_row_group(group, columns=["image"])["image"]
                    for row, cell in zip(wanted, cells.slice(wanted.start - start, len(wanted)), strict=True):
                        held = cell.as_py()
                        data = held["bytes"] if isinstance(held, dict) else held
                        yield f"row {row}", data or b""
                start += count

    def _check_column(self, name: str, mend: str) -> None:
        names = self._parquet[0].schema_arrow.names
        if not self.has(name):
            known = ", ".join(names)
            raise self._bad(f"{self.place} has no column {name!r}{nearest(name, names)}, only {known}{mend}")


class ImageFolder(Images):
    """Image files at any depth. Captions are a column of metadata.csv or .jsonl beside `file_name`, or else folders."""

    def __init__(self, place: str, field: str) -> None:
        super().__init__(place, field)
        self._root = Path(place)
        self._pictures = sorted(file for file in self._root.rglob("*") if file.suffix.lower() in SUFFIXES)
        self._metadata = [self._root / name for name in METADATA if (self._root / name).is_file()][:1]

    def __len__(self) -> int:
        return len(self._pictures)

    @property
    def files(self) -> list[Path]:
        """The pictures, and the metadata."""
        return [*self._pictures, *self._metadata]

    def has(self, column: str) -> bool:
        """A column of the metadata."""
        return bool(self._metadata) and column in self._table().column_names

    def captions(self, column: str) -> list[str]:
        """The column of the metadata, or the name of each picture's folder where there is no metadata."""
        names = [file.relative_to(self._root).as_posix() for file in self._pictures]
        if not self._metadata:
            return [self._folder(name) for name in names]
        file, table = self._metadata[0], self._table()
        for wanted in ("file_name", column):
            if wanted not in table.column_names:
                raise self._bad(f"{file} has no column {wanted!r}, only {', '.join(table.column_names)}")
        told = dict(zip(table["file_name"].to_pylist(), table[column].to_pylist(), strict=True))
        for name in names:
            if told.get(name) is None:
                raise self._bad(f"{file} says nothing of {name}; give it a {column!r}, or take the picture out")
        return [str(told[name]).strip() for name in names]

    def _table(self) -> pa.Table:
        (file,) = self._metadata
        try:
            return READERS[file.suffix](file)
        except pa.ArrowInvalid as error:
            raise self._bad(f"{file} cannot be read ({error})") from None

    def _folder(self, name: str) -> str:
        if "/" not in name:
            raise self._bad(
                f"{name} of {self.place} has no caption; write {METADATA[0]} with the column `file_name`, "
                'sort the pictures into folders, or set data.caption_column=""'
            )
        return name.split("/")[-2]

    def _encoded(self, rows: range) -> Iterator[tuple[str, bytes]]:
        for file in self._pictures[rows.start : rows.stop]:
            yield file.relative_to(self._root).as_posix(), file.read_bytes()
