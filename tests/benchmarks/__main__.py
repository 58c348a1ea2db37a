"""Benchmarks, one JSON object a line, and what they found beside this file: `make bench`.

python -m tests.benchmarks [NAME ...]     # all by default; the record keeps what it has of the others
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from tests.benchmarks import (
    breakeven,
    commits,
    factory,
    firststep,
    loader,
    loop,
    mosaic,
    overlap,
    pauses,
    ranks,
    sampling,
    scaling,
    simulation,
    startup,
    steps,
    stored,
    targets,
    tars,
)
from tests.benchmarks.ratio import Row, show
from tests.support.record import commit_of, write_record

HERE = Path(__file__).parent
NONE: Row = {"model": "none", "threads": 1}
TINY: Row = {"model": "the tests' tiny one", "threads": 1}
EMOJI: Row = {"model": "emoji teacher: 3.7 M weights, latents of 8x8x8", "threads": 1}
BOTH: Row = {"model": "the row's teacher; fashion: 0.6 M weights, pixels of 1x28x28", "threads": 1}
BENCHMARKS: dict[str, tuple[Row, Callable[[], Iterator[Row]]]] = {
    "startup": (NONE, lambda: startup.main(repeats=7)),
    "firststep": (TINY, lambda: firststep.main(repeats=3)),
    "loop": (EMOJI, lambda: loop.main(steps=20, batch_size=32, repeats=5)),
    "pauses": (EMOJI, lambda: pauses.main(steps=60)),
    "factory": (BOTH, lambda: factory.main(shards=4, repeats=3)),
    "overlap": (NONE, lambda: overlap.main(shards=24, repeats=5)),
    "loader": (NONE, lambda: loader.main(samples=2560, repeats=15)),
    "tars": (NONE, lambda: tars.main(samples=2560, repeats=5)),
    "mosaic": (NONE, lambda: mosaic.main(samples=2560, repeats=5)),
    "commits": (NONE, lambda: commits.main(shards=10_000)),
    "stored": (EMOJI, lambda: stored.main(steps=6, batch_size=64, repeats=7)),
    "breakeven": (EMOJI, lambda: breakeven.main(steps=3, repeats=5)),
    "ranks": (EMOJI, lambda: ranks.main(steps=8, rows=ranks.ROWS, repeats=9)),
    "simulation": (NONE, lambda: simulation.main(shard_s=60.0, mtbf_h=8.0)),
    "sampling": (EMOJI, lambda: sampling.main(images=16, repeats=3)),
    "steps": (EMOJI, lambda: steps.main(batch_size=4)),
    "scaling": (NONE, lambda: scaling.main(shards=[10, 1_000, 100_000])),
}


def main(names: list[str]) -> None:
    """Run these, or all, and renew their rows of the record. Each row says at which commit it was measured."""
    for name in names or BENCHMARKS:
        (facts, run), commit = BENCHMARKS[name], commit_of(HERE)
        keep([{**facts, **row, "commit": commit} for row in show(run())])


def keep(rows: list[Row]) -> None:
    """Write the record, with what it had of other benchmarks."""
    file = HERE / "results.json"
    known = json.loads(file.read_text())["benchmarks"] if file.exists() else []
    renewed = {row["benchmark"] for row in rows}
    rows = [row for row in known if row["benchmark"] not in renewed] + rows
    targets.write(rows, HERE, write_record(HERE, {"benchmarks": rows}))


if __name__ == "__main__":
    main(sys.argv[1:])
