"""Reads real pictures and their captions, from Parquet in Hugging Face's format or from a folder."""

from __future__ import annotations

import bisect
import hashlib
import io
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from PIL import Image, ImageOps
from torch import Tensor

from fewstep.orchestrator.errors import BadInput, nearest
from fewstep.orchestrator.files import file_hash
from fewstep.orchestrator.inputs.prompts import READERS

SUFFIXES = (".bmp", ".jpeg", ".jpg", ".png", ".webp")
Answer = TypeVar("Answer")
METADATA = ("metadata.csv", "metadata.jsonl")  # as Hugging Face's imagefolder has them


class Images(ABC):
    """Pictures in an order, from a file or folder at `path`, which the recipe's `field` names."""

    def __init__(self, path: str, field: str) -> None:
        self.path, self.field = path, field

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
    def _encoded(self, rows: Sequence[int]) -> Iterator[tuple[str, bytes]]:
        """The name and the file of each picture; the rows ascend."""

    def pixels(self, rows: Sequence[int], size: tuple[int, int]) -> Tensor:
        """Some of them [n, 3, height, width] in 0..1, cut to that; the rows ascend.

        Raises BadInput with the first that is none.
        """
        return torch.stack(self._each(rows, lambda picture: cut(picture.convert("RGB"), size)))

    def arranged(self, sizes: Sequence[tuple[int, int]]) -> list[list[int]]:
        """The rows for each size, that of the nearest aspect. All headers are read, and BadInput raised as above."""
        aspects, rows_of = [math.log(height / width) for height, width in sizes], [list[int]() for _ in sizes]
        for row, aspect in enumerate(self._each(range(len(self)), lambda picture: picture.height / picture.width)):
            rows_of[min(range(len(sizes)), key=lambda size: abs(aspects[size] - math.log(aspect)))].append(row)
        return rows_of

    def digest(self) -> str:
        """SHA-256 of the one file, or over names and bytes of all."""
        root = Path(self.path)
        if root.is_file():
            return file_hash(root)
        named = [(file.relative_to(root).as_posix(), file_hash(file)) for file in self.files]
        return hashlib.sha256(repr(named).encode()).hexdigest()

    def _each(self, rows: Sequence[int], look: Callable[[Image.Image], Answer]) -> list[Answer]:
        """The answers of `look` to each of these pictures. Raises BadInput with the first that cannot be read."""
        answers = list[Answer]()
        for name, data in self._encoded(rows):
            try:
                answers.append(look(ImageOps.exif_transpose(Image.open(io.BytesIO(data)))))
            except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
                raise self._bad(f"{name} of {self.path} cannot be read as an image ({error}); take it out") from None
        return answers

    def _bad(self, why: str) -> BadInput:
        return BadInput(f"{self.field}: {why}")


def cut(picture: Image.Image, size: tuple[int, int]) -> Tensor:
    """The largest middle part of this aspect, brought to this height and width: [3, height, width] in 0..1."""
    height, width = size
    scale = min(picture.height / height, picture.width / width)
    tall, wide = round(height * scale), round(width * scale)
    left, top = (picture.width - wide) // 2, (picture.height - tall) // 2
    picture = picture.crop((left, top, left + wide, top + tall))
    if (tall, wide) != size:
        picture = picture.resize((width, height), Image.Resampling.LANCZOS)
    return torch.from_numpy(np.array(picture)).permute(2, 0, 1).float() / 255


def open_images(path: str, field: str) -> Images:
    """The pictures of a Parquet file, of a folder of such files, or of a folder of image files.

    Raises BadInput where there are none.
    """
    root = Path(path)
    parquet = [root] if root.is_file() else sorted(root.glob("*.parquet"))
    images = ParquetImages(path, field, parquet) if parquet else ImageFolder(path, field)
    if not len(images):
        raise BadInput(f"{field}: {path} holds no image; give Parquet with a column `image`, or a folder of images")
    return images


def captions_of(images: Images, column: str) -> list[str]:
    """What each is conditioned on; nothing at all without a column."""
    return images.captions(column) if column else [""] * len(images)


class ParquetImages(Images):
    """A column `image` of {bytes, path}, or of bytes."""

    def __init__(self, path: str, field: str, files: Sequence[Path]) -> None:
        super().__init__(path, field)
        self._files = list(files)
        try:
            self._parquet = [pq.ParquetFile(file) for file in files]
        except (OSError, ValueError) as error:
            why = " ".join(str(error).split())
            raise self._bad(f"{path} cannot be read as Parquet: {why}") from None
        self._check_column("image", "")

    def __len__(self) -> int:
        return sum(parquet.metadata.num_rows for parquet in self._parquet)

    @property
    def files(self) -> list[Path]:
        """The Parquet files."""
        return self._files

    def has(self, column: str) -> bool:
        """Whether the first file has the column; the others have the same ones."""
        return column in self._parquet[0].schema_arrow.names

    def captions(self, column: str) -> list[str]:
        """The column as text."""
        self._check_column(column, "; name another, or none, in data.caption_column")
        read = pa.concat_tables([parquet.read([column]) for parquet in self._parquet]).column(column)
        if read.null_count or not (pa.types.is_integer(read.type) or pa.types.is_string(read.type)):
            raise self._bad(f"the column {column!r} of {self.path} must hold text or a class's number in every row")
        return [str(value).strip() for value in read.to_pylist()]

    def _encoded(self, rows: Sequence[int]) -> Iterator[tuple[str, bytes]]:
        start = 0
        for parquet in self._parquet:
            for group in range(parquet.num_row_groups):
                count = parquet.metadata.row_group(group).num_rows
                if group_rows := rows[bisect.bisect_left(rows, start) : bisect.bisect_left(rows, start + count)]:
                    cells = parquet.read_row_group(group, columns=["image"])["image"]
                    for row in group_rows:
                        cell = cells[row - start].as_py()
                        data = cell["bytes"] if isinstance(cell, dict) else cell
                        yield f"row {row}", data or b""
                start += count

    def _check_column(self, name: str, mend: str) -> None:
        names = self._parquet[0].schema_arrow.names
        if not self.has(name):
            known = ", ".join(names)
            raise self._bad(f"{self.path} has no column {name!r}{nearest(name, names)}, only {known}{mend}")


class ImageFolder(Images):
    """Image files at any depth. Captions are a column of metadata.csv or .jsonl beside `file_name`, or else folders."""

    def __init__(self, path: str, field: str) -> None:
        super().__init__(path, field)
        self._root = Path(path)
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
        for name in ("file_name", column):
            if name not in table.column_names:
                raise self._bad(f"{file} has no column {name!r}, only {', '.join(table.column_names)}")
        captions = dict(zip(table["file_name"].to_pylist(), table[column].to_pylist(), strict=True))
        for name in names:
            if captions.get(name) is None:
                raise self._bad(f"{file} says nothing of {name}; give it a {column!r}, or take the picture out")
        return [str(captions[name]).strip() for name in names]

    def _table(self) -> pa.Table:
        (file,) = self._metadata
        try:
            return READERS[file.suffix](file)
        except pa.ArrowInvalid as error:
            raise self._bad(f"{file} cannot be read ({error})") from None

    def _folder(self, name: str) -> str:
        if "/" not in name:
            raise self._bad(
                f"{name} of {self.path} has no caption; write {METADATA[0]} with the column `file_name`, "
                'sort the pictures into folders, or set data.caption_column=""'
            )
        return name.split("/")[-2]

    def _encoded(self, rows: Sequence[int]) -> Iterator[tuple[str, bytes]]:
        for file in (self._pictures[row] for row in rows):
            yield file.relative_to(self._root).as_posix(), file.read_bytes()
