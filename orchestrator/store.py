"""Where trajectories are kept: a place for bytes under computed keys, with one atomic act, put-if-absent."""

from __future__ import annotations

import errno
import os
import re
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, Protocol

from orchestrator.errors import BadInput

_PART = r"[A-Za-z0-9][A-Za-z0-9._-]*"
_KEY = re.compile(rf"{_PART}(/{_PART})*")
_IS_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class Store(Protocol):
    """Bytes under keys like "commits/000003.json". Keys are computed by fewstep, never read from a file.

    `put_if_absent` is the only act that decides anything: of any number of writers exactly one gets True.
    `write` is for names that are never used twice. Both are durable when they return, and both raise
    BadInput when the place is full. A key that is not there raises FileNotFoundError.
    """

    url: str

    def put_if_absent(self, key: str, data: bytes) -> bool:
        """Create the key with these bytes, whole or not at all; False where it exists already."""
        ...

    def write(self, key: str, data: bytes | memoryview) -> None:
        """Create the key, which nobody has used before and nobody reads until a commit names it."""
        ...

    def read(self, key: str) -> bytes:
        """All bytes of the key."""
        ...

    def read_range(self, key: str, offset: int, length: int) -> bytes:
        """At most `length` bytes; fewer where the key ends."""
        ...

    def size(self, key: str) -> int:
        """Number of bytes of the key."""
        ...

    def keys(self, folder: str) -> list[str]:
        """The keys directly in a folder, sorted; none where there is no folder."""
        ...

    def delete(self, key: str) -> None:
        """Remove a key that no commit names."""
        ...


def open_store(url: str) -> Store:
    """The store at a folder. Raises BadInput for a place that fewstep cannot use yet."""
    scheme, separator, _ = url.partition("://")
    if separator:
        raise BadInput(f"store: {scheme}:// is not supported yet, got {url!r}; give a folder that all nodes share")
    return LocalStore(Path(url).expanduser().resolve())


def probe(store: Store, folder: str) -> None:
    """Make sure that put-if-absent keeps its word here. Raises BadInput where it does not."""
    key = f"{folder}/probe-{uuid.uuid4().hex}"
    refused = f"store: {store.url} cannot create a file only where there is none, which keeps two writers apart"
    try:
        answers = store.put_if_absent(key, b"first"), store.put_if_absent(key, b"second")
        found = store.read(key)
        store.delete(key)
    except OSError as error:
        raise BadInput(f"{refused} ({error.strerror}); choose another folder") from error
    if answers != (True, False) or found != b"first":
        raise BadInput(f"{refused}; choose another folder")


class LocalStore:
    """A folder on a disk, or on a network file system that knows hard links."""

    def __init__(self, root: Path) -> None:
        self.url = str(root)
        self._root = root

    def put_if_absent(self, key: str, data: bytes) -> bool:
        """Link a synced temporary file to the key; the file system lets one link win."""
        path = self._path(key)
        self._make(path.parent)
        temporary = path.parent / f".{uuid.uuid4().hex}"
        with self._created(temporary) as stream:
            stream.write(data)
        try:
            os.link(temporary, path)
            return True
        except FileExistsError:
            # Over NFS the answer to a link that succeeded can get lost, and its repetition says "exists".
            return os.stat(temporary).st_nlink == 2
        finally:
            temporary.unlink()
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

    def read_range(self, key: str, offset: int, length: int) -> bytes:
        """Part of the file."""
        with self._path(key).open("rb", buffering=0) as stream:
            stream.seek(offset)
            return stream.read(length)

    def size(self, key: str) -> int:
        """Size of the file."""
        return self._path(key).stat().st_size

    def keys(self, folder: str) -> list[str]:
        """The files of the folder; temporary ones begin with a dot and are no keys."""
        path = self._path(folder)
        names = sorted(os.listdir(path)) if path.is_dir() else []
        return [f"{folder}/{name}" for name in names if not name.startswith(".")]

    def delete(self, key: str) -> None:
        """Remove the file."""
        self._path(key).unlink()

    def _path(self, key: str) -> Path:
        if not _KEY.fullmatch(key):
            raise ValueError(f"{key!r} is no key; a key is made of letters, digits, '.', '_' and '-' between slashes")
        return self._root / key

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


def _sync(folder: Path) -> None:
    """Make the names in a folder durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
