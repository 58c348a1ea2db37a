"""Writes files so that a crash leaves the old one or the new one, and hashes them."""

from __future__ import annotations

import hashlib
import os
import uuid
from pathlib import Path


def write_whole(file: Path, text: str) -> None:
    """Write a file under a name of its own, sync it, and rename it over the old one."""
    file.parent.mkdir(parents=True, exist_ok=True)
    temporary = file.with_name(f".{file.name}.{uuid.uuid4().hex[:8]}")
    with temporary.open("w") as stream:
        stream.write(text)
        stream.flush()
        os.fsync(stream.fileno())
    temporary.replace(file)


def file_hash(file: Path) -> str:
    """SHA-256 of all bytes of a file, in hexadecimal digits."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
