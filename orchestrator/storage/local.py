"""Stores bytes in a folder, by hard links and fsync."""

from __future__ import annotations

import errno
import mmap
import os
import re
import shutil
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import BinaryIO

from fewstep.orchestrator.errors import BadInput
from fewstep.orchestrator.storage.store import Stored, check_key

_TEMPORARY = re.compile(r"\.[0-9a-f]{32}")
_MAPPED = 64  # ranges of files that stay mapped, each with a file handle
_IS_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class LocalStore:
    """A folder on a disk, or on a network file system that knows hard links."""

    def __init__(self, root: Path, *, single_writer: bool = False) -> None:
        self.url = str(root)
        self._root, self._single_writer = root, single_writer
        self._mapped = lru_cache(maxsize=_MAPPED)(_mapped)  # read again, its pages need not be found again

    def put_if_absent(self, key: str, data: bytes) -> bool:
        """Link a synced temporary file to the key; the file system lets one link win."""
        path = self._path(key)
        self._make(path.parent)
        if self._single_writer and path.exists():
            return False
        temporary = path.parent / f".{uuid.uuid4().hex}"
        with self._created(temporary) as stream:
            stream.write(data)
        try:
            if self._single_writer:
                temporary.replace(path)
            else:
                os.link(temporary, path)
            return True
        except FileExistsError:
            # Over NFS the answer to a link that succeeded can get lost, and its repetition says "exists".
            return os.stat(temporary).st_nlink == 2
        finally:
            temporary.unlink(missing_ok=True)
            _sync(path.parent)

    def write(self, key: str, data: bytes | memoryview) -> None:
        """Write the file and sync it, and then the folder that names it."""
        path = self._path(key)
        self._make(path.parent)
        with self._created(path) as stream:
            stream.write(data)
        _sync(path.parent)

    def read(self, key: str) -> bytes:
        """All bytes of the file."""
        return self._path(key).read_bytes()

    def read_range(self, key: str, offset: int, length: int) -> memoryview:
        """Part of the file, mapped: the disk is asked for it at once, but nothing is copied."""
        path = self._path(key)
        file = path.stat()
        stop = min(offset + length, file.st_size)
        if stop <= offset:
            return memoryview(b"")
        start = offset - offset % mmap.ALLOCATIONGRANULARITY
        return self._mapped(path, file.st_ino, file.st_mtime_ns, start, stop)[offset - start :]

    def read_many(self, keys: Sequence[str]) -> list[bytes]:
        """One file after another."""
        return [self.read(key) for key in keys]

    def size(self, key: str) -> int:
        """Size of the file."""
        return self._path(key).stat().st_size

    def keys(self, folder: str) -> list[str]:
        """The files of the folder; temporary ones begin with a dot and are no keys."""
        path = self._path(folder)
        names = sorted(os.listdir(path)) if path.is_dir() else []
        return [f"{folder}/{name}" for name in names if not name.startswith(".")]

    def files(self) -> list[Stored]:
        """All files but temporary ones."""
        return [stored for stored in self._walk() if not Path(stored.key).name.startswith(".")]

    def delete(self, key: str) -> None:
        """Remove the file."""
        self._path(key).unlink()

    def sweep(self, age_s: float) -> int:
        """Remove temporary files."""
        old = [s for s in self._walk() if _TEMPORARY.fullmatch(Path(s.key).name) and s.age_s > age_s]
        for stored in old:
            (self._root / stored.key).unlink()
        return len(old)

    def free_bytes(self) -> float:
        """Free space of the file system that the folder is or will be on."""
        existing = next(folder for folder in (self._root, *self._root.parents) if folder.exists())
        return shutil.disk_usage(existing).free

    def _walk(self) -> Iterator[Stored]:
        now = time.time()
        for path in sorted(self._root.rglob("*")):
            if path.is_file():
                stat = path.stat()
                yield Stored(path.relative_to(self._root).as_posix(), stat.st_size, now - stat.st_mtime)

    def _path(self, key: str) -> Path:
        return self._root / check_key(key)

    def _make(self, folder: Path) -> None:
        """Create a folder durably."""
        if not folder.is_dir():
            self._make(folder.parent)
            folder.mkdir(exist_ok=True)
            _sync(folder.parent)

    @contextmanager
    def _created(self, path: Path) -> Iterator[BinaryIO]:
        """A new file, synced at the end; nothing of it stays where writing fails."""
        try:
            with path.open("xb") as stream:
                yield stream
                stream.flush()
                os.fsync(stream.fileno())
        except OSError as error:
            path.unlink(missing_ok=True)
            if error.errno not in _IS_FULL:
                raise
            raise BadInput(
                f"store: no space left at {self.url} ({error.strerror}); free some and repeat the command, "
                "which continues after the shards that are committed"
            ) from error


def _mapped(path: Path, inode: int, changed_ns: int, start: int, stop: int) -> memoryview:
    """A mapped range of a file. `inode` and `changed_ns` tell the cache around it a changed file from the old one."""
    with path.open("rb") as stream:
        mapped = mmap.mmap(stream.fileno(), stop - start, access=mmap.ACCESS_READ, offset=start)
    mapped.madvise(mmap.MADV_WILLNEED)
    return memoryview(mapped)


def _sync(folder: Path) -> None:
    """Make the names in a folder durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
