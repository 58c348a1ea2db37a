"""Samples that were made elsewhere: WebDataset tars, or folders of the same files, as one finds them."""

from __future__ import annotations

import io
import pickle
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from fewstep.orchestrator.errors import BadInput
from fewstep.orchestrator.inputs.images import SUFFIXES, Images

FIELD = "import"
TENSORS = (".npy", ".pt", ".pth")
NOISE, LATENT = "noise", "latent"
CAPTIONS = (".txt", ".cls")
FORM = (
    "give each sample files of one name: NAME.png (or another picture) or NAME.latent.npy, NAME.txt or NAME.cls, and "
    "for pairs NAME.noise.npy"
)


@dataclass(frozen=True)
class FileSlice:
    """Where the bytes of one file of a sample are."""

    file: Path
    offset: int
    size: int

    def read(self) -> bytes:
        """All of them."""
        with self.file.open("rb") as stream:
            stream.seek(self.offset)
            return stream.read(self.size)


class WebDatasetSamples(Images):
    """Samples in the order of their files; what belongs together has one name up to its first dot.

    A picture or `latent` is what was sampled, `noise` what it was sampled from, a caption what it was told.
    """

    def __init__(self, place: str) -> None:
        super().__init__(place, FIELD)
        root = Path(place)
        tars = [root] if root.suffix == ".tar" and root.is_file() else sorted(root.glob("*.tar"))
        self._tars = tars
        found = dict[str, dict[str, FileSlice]]()
        for name, part in self._in_tars(tars) if tars else self._in_folder(root):
            folder, _, last = name.rpartition("/")
            stem, _, extension = last.partition(".")
            found.setdefault(f"{folder}/{stem}", {})[f".{extension.lower()}"] = part
        self._samples = {name: parts for name, parts in found.items() if self._what(parts)}
        if not self._samples:
            raise self._bad(f"{place} holds no sample; {FORM}")
        self._check_alike()

    def __len__(self) -> int:
        return len(self._samples)

    @property
    def files(self) -> list[Path]:
        """The tars, or all files of the samples."""
        return self._tars or sorted(part.file for parts in self._samples.values() for part in parts.values())

    @property
    def has_noise(self) -> bool:
        """Whether they are pairs."""
        return self._first_has(NOISE)

    @property
    def has_latents(self) -> bool:
        """Whether they need not be encoded."""
        return self._first_has(LATENT)

    def has(self, column: str) -> bool:
        """Whether they have captions, whatever those are called."""
        return any(extension in parts for parts in self._samples.values() for extension in CAPTIONS)

    def captions(self, column: str) -> list[str]:
        """What each was told; a class is its number."""
        return [self._caption(parts) for parts in self._samples.values()]

    def tensors(self, kind: str, rows: range, shape: tuple[int, ...]) -> Tensor:
        """Noise or latents of some samples, float32. Raises BadInput for one of another shape, or that is no array."""
        named = list(self._samples.items())[rows.start : rows.stop]
        return torch.stack([self._tensor(name, *_find(parts, kind), shape) for name, parts in named])

    def _encoded(self, rows: Sequence[int]) -> Iterator[tuple[str, bytes]]:
        named = list(self._samples.items())
        for name, parts in (named[row] for row in rows):
            yield name, next(part for extension, part in parts.items() if extension in SUFFIXES).read()

    def _tensor(self, name: str, extension: str, part: FileSlice, shape: tuple[int, ...]) -> Tensor:
        data = io.BytesIO(part.read())
        try:
            if extension.endswith(".npy"):
                value = torch.from_numpy(np.load(data, allow_pickle=False))
            else:
                value = torch.load(data, map_location="cpu", weights_only=True)
        except (ValueError, EOFError, RuntimeError, pickle.UnpicklingError) as error:
            why = " ".join(str(error).split())[:200]
            raise self._bad(f"{name}{extension} of {self.place} is no plain array ({why})") from None
        if not isinstance(value, Tensor) or tuple(value.shape) != shape:
            found = list(value.shape) if isinstance(value, Tensor) else type(value).__name__
            raise self._bad(
                f"{name}{extension} of {self.place} must be {list(shape)} as the teacher's latents, got {found}"
            )
        return value.float()

    def _caption(self, parts: dict[str, FileSlice]) -> str:
        told = next((parts[extension] for extension in CAPTIONS if extension in parts), None)
        return told.read().decode().strip() if told else ""

    def _first_has(self, kind: str) -> bool:
        return any(extension in next(iter(self._samples.values())) for extension in _names(kind))

    def _what(self, parts: dict[str, FileSlice]) -> bool:
        """Is there something that was sampled?"""
        return any(extension in SUFFIXES or extension in _names(LATENT) for extension in parts)

    def _check_alike(self) -> None:
        """All have what the first has."""
        first = next(iter(self._samples.values()))
        for kind, files in ((NOISE, _names(NOISE)), (LATENT, _names(LATENT)), ("caption", CAPTIONS)):
            wanted = any(extension in first for extension in files)
            for name, parts in self._samples.items():
                if any(extension in parts for extension in files) != wanted:
                    raise self._bad(
                        f"{name} of {self.place} has {'no' if wanted else 'a'} {kind}, unlike the first sample"
                    )

    def _in_tars(self, tars: list[Path]) -> Iterator[tuple[str, FileSlice]]:
        for file in tars:
            try:
                with tarfile.open(file, "r:") as archive:
                    for member in archive:
                        if member.isfile():
                            yield f"{file.name}/{member.name}", FileSlice(file, member.offset_data, member.size)
            except tarfile.TarError as error:
                raise self._bad(f"{file} cannot be read as a plain tar ({error}); unpack what is compressed") from None

    def _in_folder(self, root: Path) -> Iterator[tuple[str, FileSlice]]:
        for file in sorted(root.rglob("*")):
            if file.is_file():
                yield file.relative_to(root).as_posix(), FileSlice(file, 0, file.stat().st_size)


def _names(kind: str) -> tuple[str, ...]:
    return tuple(f".{kind}{suffix}" for suffix in TENSORS)


def _find(parts: dict[str, FileSlice], kind: str) -> tuple[str, FileSlice]:
    extension = next(extension for extension in _names(kind) if extension in parts)
    return extension, parts[extension]


def open_samples(place: str) -> WebDatasetSamples:
    """The samples of a tar, of a folder of tars, or of a folder. Raises BadInput where there are none."""
    if not Path(place).exists():
        raise BadInput(f"{FIELD}: there is nothing at {place}")
    return WebDatasetSamples(place)
