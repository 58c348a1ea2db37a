"""Writes and reads spans of time as people do."""

from __future__ import annotations

import re

from fewstep.orchestrator.errors import BadInput

UNITS_S = {"s": 1, "m": 60, "h": 3600, "d": 86400}


def words(seconds: float) -> str:
    """A span in its natural unit, like 250 ms, 12.3 s, 4.5 min or 3.2 h."""
    if seconds < 1:
        return f"{seconds * 1000:.0f} ms"
    if seconds < 90:
        return f"{seconds:.1f} s"
    minutes = seconds / 60
    return f"{minutes:.1f} min" if minutes < 90 else f"{minutes / 60:.1f} h"


def seconds_of(span: str, field: str) -> float:
    """The seconds of "90s", "30m", "2h" or "7d". Raises BadInput for anything else."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([smhd])", span.strip())
    if not match:
        raise BadInput(f"{field}: {span!r} is no span of time; write it like 90s, 30m, 2h or 7d")
    return float(match[1]) * UNITS_S[match[2]]
