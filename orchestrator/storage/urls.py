"""Opens the store behind a URL."""

from __future__ import annotations

from pathlib import Path

from fewstep.orchestrator.errors import BadInput
from fewstep.orchestrator.storage.local import LocalStore
from fewstep.orchestrator.storage.store import Store, check_url


def open_store(url: str, *, single_writer: bool = False) -> Store:
    """The store at a folder or an s3:// URL. Raises BadInput for a place that can be neither.

    With a single writer, put-if-absent looks first and then writes: two drivers are not kept apart.
    """
    try:
        check_url(url)
    except ValueError as error:
        raise BadInput(f"store: {error}") from None
    if url.startswith("s3://"):
        from fewstep.orchestrator.storage.s3 import S3Store

        return S3Store(url.rstrip("/"), single_writer=single_writer)
    return LocalStore(Path(url).expanduser().resolve(), single_writer=single_writer)
