"""Stores bytes in a bucket of S3, or of anything that speaks its protocol, through s3fs."""

from __future__ import annotations

import errno
import math
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import UTC, datetime

from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    CredentialRetrievalError,
    NoCredentialsError,
    PartialCredentialsError,
    ProfileNotFound,
)
from s3fs import S3File, S3FileSystem

from fewstep.orchestrator.errors import BadInput
from fewstep.orchestrator.storage.store import Stored, check_key

PIECE = 1 << 24  # bytes handed over at once, so that a shard is never in memory twice
READERS = 32  # GETs at once
LARGEST = 1 << 40  # bytes of an object
CONFLICTS = 8  # times that a conditional write is repeated where S3 says that another is under way
CLIENT = {"connect_timeout": 10, "read_timeout": 30, "retries": {"mode": "standard", "max_attempts": 5}}
_STRANGERS = (
    PermissionError,
    NoCredentialsError,
    PartialCredentialsError,
    ProfileNotFound,
    CredentialRetrievalError,
)


class S3Store:
    """A folder of a bucket. Endpoint, region and credentials come from the environment, a profile or a role."""

    def __init__(self, url: str, *, single_writer: bool = False) -> None:
        self.url = url
        self._root, self._single_writer = url.removeprefix("s3://"), single_writer
        # Others write here too: nothing that was listed or looked up before may be believed.
        self._files = S3FileSystem(use_listings_cache=False, config_kwargs=dict(CLIENT))

    def put_if_absent(self, key: str, data: bytes) -> bool:
        """A conditional PUT (`If-None-Match: *`); S3 lets one win.

        False also where it was this PUT that won, its answer got lost, and its repetition met the key.
        """
        if self._single_writer:
            if self._exists(key):
                return False
            self.write(key, data)
            return True
        for attempt in range(CONFLICTS):
            try:
                with self._explained():
                    self._files.pipe_file(self._path(key), data, mode="create")
                return True
            except OSError as error:
                if _code(error) in ("PreconditionFailed", "412"):
                    return False
                if _code(error) not in ("ConditionalRequestConflict", "409"):
                    raise
                time.sleep(0.1 * 2**attempt)
        raise OSError(errno.EBUSY, f"{self.url}/{key}: other writers are in the way all the time")

    def write(self, key: str, data: bytes | memoryview) -> None:
        """One PUT, or a multipart upload, which S3 shows when it is complete."""
        with self._explained(), self._files.open(self._path(key), "wb") as file:
            assert isinstance(file, S3File)
            for start in range(0, len(data), PIECE):
                file.write(data[start : start + PIECE])

    def read(self, key: str) -> bytes:
        """All bytes of the object; asked for as a range, because s3fs asks for the size first where there is none."""
        return self.read_range(key, 0, LARGEST)

    def read_range(self, key: str, offset: int, length: int) -> bytes:
        """A ranged GET."""
        try:
            with self._explained():
                data = self._files.cat_file(self._path(key), start=offset, end=offset + length)
        except OSError as error:
            if _code(error) in ("InvalidRange", "416"):
                return b""
            raise
        assert isinstance(data, bytes)
        return data

    def read_many(self, keys: Sequence[str]) -> list[bytes]:
        """Many GETs at once."""
        with ThreadPoolExecutor(READERS) as readers:
            return list(readers.map(self.read, keys))

    def size(self, key: str) -> int:
        """Size of the object."""
        with self._explained():
            return self._files.info(self._path(key), refresh=True)["size"]

    def keys(self, folder: str) -> list[str]:
        """One LIST per thousand objects."""
        try:
            with self._explained():
                entries = self._files.ls(self._path(folder), detail=True, refresh=True)
        except FileNotFoundError:
            return []
        return sorted(self._key(file["name"]) for file in entries if file["type"] == "file")

    def files(self) -> list[Stored]:
        """One LIST per thousand objects."""
        now = datetime.now(UTC)
        with self._explained():
            objects = self._files.find(self._root, detail=True, refresh=True)
        assert isinstance(objects, dict)
        return [
            Stored(self._key(file["name"]), file["size"], (now - file["LastModified"]).total_seconds())
            for _, file in sorted(objects.items())
        ]

    def delete(self, key: str) -> None:
        """Remove the object."""
        with self._explained():
            self._files.rm_file(self._path(key))

    def sweep(self, age_s: float) -> int:
        """Abort multipart uploads that nobody finished."""
        bucket, _, prefix = self._root.partition("/")
        now = datetime.now(UTC)
        with self._explained():
            uploads: list[dict] = self._files.list_multipart_uploads(bucket) or []
            old = [
                upload
                for upload in uploads
                if upload["Key"].startswith(f"{prefix}/") and (now - upload["Initiated"]).total_seconds() > age_s
            ]
            for upload in old:
                self._files.abort_mpu(bucket, upload["Key"], upload["UploadId"])
        return len(old)

    def free_bytes(self) -> float:
        """A bucket is never full."""
        return math.inf

    def _exists(self, key: str) -> bool:
        try:
            return self.size(key) >= 0
        except FileNotFoundError:
            return False

    def _path(self, key: str) -> str:
        return f"{self._root}/{check_key(key)}"

    def _key(self, path: str) -> str:
        return path.removeprefix(f"{self._root}/")

    @contextmanager
    def _explained(self) -> Iterator[None]:
        """Say what to do about credentials; everything else is the network's, and worth another attempt."""
        try:
            yield
        except _STRANGERS as error:
            raise BadInput(
                f"store: {self.url} cannot be used with this machine's credentials ({error}); give it a role, a "
                "profile (AWS_PROFILE) or keys in its environment, on every node"
            ) from None
        except BotoCoreError as error:
            raise OSError(errno.EIO, f"{self.url}: {error}") from None


def _code(error: OSError) -> str:
    """S3's own word for what went wrong."""
    cause = error.__cause__
    if isinstance(error, FileExistsError):
        return "PreconditionFailed"
    return str(cause.response["Error"]["Code"]) if isinstance(cause, ClientError) else ""
