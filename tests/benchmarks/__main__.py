"""All benchmarks, one JSON object a line, and a record of them beside this file: `make bench`."""

from __future__ import annotations

import itertools
from pathlib import Path

from tests.benchmarks import commits, factory, loader, loop, overlap
from tests.benchmarks.ratio import show
from tests.record import write_record

if __name__ == "__main__":
    rows = itertools.chain(
        loop.main(steps=20, batch_size=32, repeats=5),
        factory.main(teacher=str(loop.EMOJI), shards=4, repeats=3),
        loader.main(samples=2048, repeats=9),
        overlap.main(shards=12, repeats=3),
        commits.main(shards=10_000),
    )
    write_record(Path(__file__).parent, {"benchmarks": show(rows)})
