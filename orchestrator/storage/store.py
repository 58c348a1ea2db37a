"""Describes where data sets are kept: bytes under computed keys, with one atomic act, put-if-absent."""

from __future__ import annotations

import re
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from fewstep.orchestrator.errors import BadInput

Data = bytes | memoryview  # as a store gives it

_PART = r"[A-Za-z0-9][A-Za-z0-9._-]*"
_KEY = re.compile(rf"{_PART}(/{_PART})*")
_S3 = re.compile(r"s3://[a-z0-9][a-z0-9.-]+[a-z0-9](/[A-Za-z0-9._=-]+)*/?")


@dataclass(frozen=True)
class Stored:
    """A key with what the store knows of it."""

    key: str
    bytes: int
    age_s: float


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

    def read_range(self, key: str, offset: int, length: int) -> Data:
        """At most `length` bytes; fewer where the key ends."""
        ...

    def read_many(self, keys: Sequence[str]) -> list[bytes]:
        """All bytes of each key, as fast as the place allows; for many small ones."""
        ...

    def size(self, key: str) -> int:
        """Number of bytes of the key."""
        ...

    def keys(self, folder: str) -> list[str]:
        """The keys directly in a folder, sorted; none where there is no folder."""
        ...

    def files(self) -> list[Stored]:
        """Every key in the store, at any depth."""
        ...

    def delete(self, key: str) -> None:
        """Remove a key that no commit names."""
        ...

    def sweep(self, age_s: float) -> int:
        """Remove what writers that died left half-written and no key shows, if older; how many there were."""
        ...

    def free_bytes(self) -> float:
        """What still fits; infinity where nobody counts."""
        ...


def check_url(url: str) -> None:
    """Raises ValueError for a place that no store can be at. Says nothing of the URL: it may hold a password."""
    if "://" in url and not _S3.fullmatch(url):
        raise ValueError(
            "a store is a folder that all nodes share, or s3://bucket/folder; endpoint, region and credentials "
            "come from the environment, a profile or a role"
        )


def check_key(key: str) -> str:
    """The key itself. Raises ValueError where it could leave the store."""
    if not _KEY.fullmatch(key):
        raise ValueError(f"{key!r} is no key; a key is made of letters, digits, '.', '_' and '-' between slashes")
    return key


def probe(store: Store, folder: str) -> None:
    """Make sure that put-if-absent keeps its word here. Raises BadInput where it does not."""
    key = f"{folder}/probe-{uuid.uuid4().hex}"
    refused = f"store: {store.url} cannot create a file only where there is none, which keeps two writers apart"
    mend = "choose another place, or set trajectories.single_writer=true and never run two drivers on it"
    try:
        store.put_if_absent(key, b"first")  # whose answer may get lost; what counts is what is there
        is_kept_apart = not store.put_if_absent(key, b"second")
        winner = store.read(key)
        store.delete(key)
    except OSError as error:
        raise BadInput(f"{refused} ({error}); {mend}") from error
    if not is_kept_apart or winner != b"first":
        raise BadInput(f"{refused}; {mend}")
