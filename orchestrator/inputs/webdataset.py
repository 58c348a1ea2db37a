"""Reads samples that were made elsewhere: WebDataset tars, or folders of the same files."""

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
    """The bytes of one of a sample's files, in a tar or in a file of their own."""

    file: Path
    offset: int
    size: int

    def read(self) -> bytes:
        """Read all bytes of the slice."""
        with self.file.open("rb") as stream:
            stream.seek(self.offset)
            return stream.read(self.size)


class WebDatasetSamples(Images):
    """Samples in the order of their files; what belongs together has one name up to its first dot.

    A picture or `latent` is what was sampled, `noise` what it was sampled from, a caption what it is conditioned on.
    """

    def __init__(self, path: str) -> None:
        super().__init__(path, FIELD)
        root = Path(path)
        tars = [root] if root.suffix == ".tar" and root.is_file() else sorted(root.glob("*.tar"))
        self._tars = tars
        samples = dict[str, dict[str, FileSlice]]()
        for name, file in self._in_tars(tars) if tars else self._in_folder(root):
            folder, _, last = name.rpartition("/")
            stem, _, extension = last.partition(".")
            samples.setdefault(f"{folder}/{stem}", {})[f".{extension.lower()}"] = file
        self._samples = {name: files for name, files in samples.items() if self._has_content(files)}
        if not self._samples:
            raise self._bad(f"{path} holds no sample; {FORM}")
        self._check_alike()

    def __len__(self) -> int:
        return len(self._samples)

    @property
    def files(self) -> list[Path]:
        """The tars, or all files of the samples."""
        return self._tars or sorted(piece.file for files in self._samples.values() for piece in files.values())

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
        return any(extension in files for files in self._samples.values() for extension in CAPTIONS)

    def captions(self, column: str) -> list[str]:
        """The caption of each sample, "" where it has none; a class is its number."""
        return [self._caption(files) for files in self._samples.values()]

    def tensors(self, kind: str, rows: range, shape: tuple[int, ...]) -> Tensor:
        """Noise or latents of some samples, float32. Raises BadInput for one of another shape, or that is no array."""
        samples = list(self._samples.items())[rows.start : rows.stop]
        return torch.stack([self._tensor(name, *_find(files, kind), shape) for name, files in samples])

    def _encoded(self, rows: Sequence[int]) -> Iterator[tuple[str, bytes]]:
        samples = list(self._samples.items())
        for name, files in (samples[row] for row in rows):
            yield name, next(file for extension, file in files.items() if extension in SUFFIXES).read()

    def _tensor(self, name: str, extension: str, file: FileSlice, shape: tuple[int, ...]) -> Tensor:
        data = io.BytesIO(file.read())
        try:
            if extension.endswith(".npy"):
                value = torch.from_numpy(np.load(data, allow_pickle=False))
            else:
                value = torch.load(data, map_location="cpu", weights_only=True)
        except (ValueError, EOFError, RuntimeError, pickle.UnpicklingError) as error:
            why = " ".join(str(error).split())[:200]
            raise self._bad(f"{name}{extension} of {self.path} is no plain array ({why})") from None
        if not isinstance(value, Tensor) or tuple(value.shape) != shape:
            form = list(value.shape) if isinstance(value, Tensor) else type(value).__name__
            raise self._bad(
                f"{name}{extension} of {self.path} must be {list(shape)} as the teacher's latents, got {form}"
            )
        return value.float()

    def _caption(self, files: dict[str, FileSlice]) -> str:
        file = next((files[extension] for extension in CAPTIONS if extension in files), None)
        return file.read().decode().strip() if file else ""

    def _first_has(self, kind: str) -> bool:
        return any(extension in next(iter(self._samples.values())) for extension in _names(kind))

    def _has_content(self, files: dict[str, FileSlice]) -> bool:
        """Is there something that was sampled?"""
        return any(extension in SUFFIXES or extension in _names(LATENT) for extension in files)

    def _check_alike(self) -> None:
        """Raises BadInput unless all samples have what the first one has."""
        first = next(iter(self._samples.values()))
        for kind, extensions in ((NOISE, _names(NOISE)), (LATENT, _names(LATENT)), ("caption", CAPTIONS)):
            first_has = any(extension in first for extension in extensions)
            for name, files in self._samples.items():
                if any(extension in files for extension in extensions) != first_has:
                    raise self._bad(
                        f"{name} of {self.path} has {'no' if first_has else 'a'} {kind}, unlike the first sample"
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


def open_samples(path: str) -> WebDatasetSamples:
    """The samples of a tar, of a folder of tars, or of a folder. Raises BadInput where there are none."""
    if not Path(path).exists():
        raise BadInput(f"{FIELD}: there is nothing at {path}")
    return WebDatasetSamples(path)


def _names(kind: str) -> tuple[str, ...]:
    return tuple(f".{kind}{suffix}" for suffix in TENSORS)


def _find(files: dict[str, FileSlice], kind: str) -> tuple[str, FileSlice]:
    extension = next(extension for extension in _names(kind) if extension in files)
    return extension, files[extension]
