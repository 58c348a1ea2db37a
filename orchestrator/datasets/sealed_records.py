"""Seals small JSON records with their own hash, so that a flipped bit is noticed."""

from __future__ import annotations

import gc
import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

from fewstep.orchestrator.errors import BadInput
from fewstep.orchestrator.recipe.section import Json


class Damaged(BadInput):
    """Stored bytes are not what was written: what it is, how to mend it, and what is wrong with it."""

    def __init__(self, what: str, mend: str, why: str) -> None:
        super().__init__(what, mend, why)  # as they are, so that the error can be pickled
        self.why = why
        self._text = f"{what} {why}; {mend}"

    def __str__(self) -> str:
        return self._text


MakeError = Callable[[str], Damaged]  # makes the error from what is wrong


def canonical(value: Mapping[str, object]) -> bytes:
    """The one JSON text of a record: equal records are equal bytes."""
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()


def seal(record: Mapping[str, object]) -> bytes:
    """The record with the hash of its canonical text."""
    return canonical({**record, "seal": hashlib.sha256(canonical(record)).hexdigest()})


def unseal(data: bytes, make_error: MakeError) -> Json:
    """The record that was sealed. Raises what `make_error` makes where its bytes have changed."""
    try:
        record = json.loads(data)
    except ValueError:
        raise make_error("is no JSON") from None
    if not isinstance(record, dict) or "seal" not in record:
        raise make_error("is no record of fewstep")
    content = {key: value for key, value in record.items() if key != "seal"}
    if data != seal(content):
        raise make_error("does not match its own hash")
    return content


@contextmanager
def gc_paused() -> Iterator[None]:
    """Without the garbage collector, which would walk ever more of what is read of many records, again and again."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()
