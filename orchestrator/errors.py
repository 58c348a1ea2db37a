"""Says what went wrong, in the words of the person who can mend it."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class BadInput(ValueError):
    """The user's input cannot be used: one sentence naming the field, the value and the mend. Exit code 2."""


class Diverged(RuntimeError):
    """Training went wrong: one sentence with the reason and the last good checkpoint. Exit code 1."""


class Abandoned(RuntimeError):
    """Training ended before its time, because its run was abandoned, without a result."""


def nearest(word: str, choices: Iterable[str]) -> str:
    """A hint for a mistyped word, like " (did you mean 'lcm'?)", or nothing."""
    match = difflib.get_close_matches(word, list(choices), n=1, cutoff=0.5)
    return f" (did you mean {match[0]!r}?)" if match else ""
