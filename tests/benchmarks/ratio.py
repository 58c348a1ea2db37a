"""Two ways of doing the same work, timed in turns in one run, so that a busy machine slows both alike."""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable, Iterable, Sequence

Row = dict[str, object]


def paired(
    bare: Callable[[], None],
    ours: Callable[[], None],
    work: int,
    repeats: int,
    before: Callable[[], None] = lambda: None,
) -> Row:
    """Work per second of ours over that of the bare twin: the median of the repeats, and all of them.

    `before` prepares each of them, and is not timed.
    """

    def timed(act: Callable[[], None]) -> float:
        before()
        return rate(act, work)

    rates = [(timed(bare), timed(ours)) for _ in range(repeats)]
    ratios = [mine / plain for plain, mine in rates]
    return {
        **median_of(ratios),
        "bare_per_s": round(statistics.median(plain for plain, _ in rates), 2),
        "ours_per_s": round(statistics.median(mine for _, mine in rates), 2),
        "work": work,
    }


def median_of(ratios: Sequence[float]) -> Row:
    """The ratio of several repeats, and all of theirs."""
    return {"ratio": round(statistics.median(ratios), 3), "ratios": [round(ratio, 3) for ratio in ratios]}


def show(rows: Iterable[Row]) -> list[Row]:
    """Print one JSON object a line."""
    shown = list[Row]()
    for row in rows:
        print(json.dumps(row), flush=True)
        shown.append(row)
    return shown


def rate(act: Callable[[], None], work: int) -> float:
    """Work per second."""
    started = time.perf_counter()
    act()
    return work / (time.perf_counter() - started)
