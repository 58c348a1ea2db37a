"""Hold the files that travel to a cluster, by name."""

from __future__ import annotations

import shutil
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

EPOCH = (1980, 1, 1, 0, 0, 0)  # of every file in an archive, so that the same files make the same archive


@dataclass(frozen=True)
class Bundle:
    """Files by their path in the bundle: each a file on this machine, or its text."""

    files: Mapping[str, Path | str]

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(len(f.encode()) if isinstance(f, str) else f.stat().st_size for f in self.files.values())

    def write(self, folder: Path) -> None:
        """Lay the files out in a folder."""
        for name, content in self.files.items():
            file = folder / name
            file.parent.mkdir(parents=True, exist_ok=True)
            if isinstance(content, str):
                file.write_text(content)
            else:
                shutil.copyfile(content, file)

    def archive(self) -> bytes:
        """A zip of all files; equal bundles make equal bytes."""
        stream = BytesIO()
        with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, content in sorted(self.files.items()):
                data = content if isinstance(content, str) else content.read_bytes()
                archive.writestr(zipfile.ZipInfo(name, EPOCH), data, zipfile.ZIP_DEFLATED)
        return stream.getvalue()
