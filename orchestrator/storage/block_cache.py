"""Keeps what was read from a bucket in a folder on this machine, up to a size."""

from __future__ import annotations

import hashlib
import os
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from fewstep.orchestrator.storage.store import Data


class Cache(Protocol):
    """Where a block of bytes may be nearer than in its store."""

    def get(self, sha256: str, fetch: Callable[[], Data]) -> Data:
        """The block with this hash, kept or else fetched, in which case the caller has yet to check it."""
        ...


def cache_for(store: str, folder: str, limit_gb: float) -> Cache:
    """A cache for what is read from a bucket; a folder needs none."""
    return BlockCache(Path(folder), limit_gb * 1024**3) if store.startswith("s3://") else Uncached()


class Uncached:
    """Every block comes from its store."""

    def get(self, sha256: str, fetch: Callable[[], Data]) -> Data:
        """Fetch the block."""
        return fetch()


class BlockCache:
    """Blocks of bytes under their SHA-256, shared by the processes of a machine. What is kept is checked when used."""

    def __init__(self, folder: Path, limit_bytes: float) -> None:
        self._folder, self._limit_bytes = folder, limit_bytes
        folder.mkdir(parents=True, exist_ok=True)

    def get(self, sha256: str, fetch: Callable[[], Data]) -> Data:
        """The block, read from here where it is whole."""
        path = self._folder / sha256
        try:
            data = path.read_bytes()
        except FileNotFoundError:
            data = b""
        if hashlib.sha256(data).hexdigest() == sha256:
            os.utime(path)
            return data
        data = fetch()
        if len(data) <= self._limit_bytes:
            self._keep(path, data)
        return data

    def _keep(self, path: Path, data: Data) -> None:
        """Write the block, after the least recently used ones have made room."""
        blocks = [(stat.st_mtime, stat.st_size, file) for file in self._folder.iterdir() if (stat := _stat(file))]
        excess = sum(size for _, size, _ in blocks) + len(data) - self._limit_bytes
        for _, size, file in sorted(blocks):
            if excess <= 0:
                break
            file.unlink(missing_ok=True)
            excess -= size
        temporary = self._folder / f".{uuid.uuid4().hex}"
        temporary.write_bytes(data)
        temporary.replace(path)


def _stat(file: Path) -> os.stat_result | None:
    """The size and times of a file; None where another process has just removed it."""
    try:
        return file.stat()
    except FileNotFoundError:
        return None
