"""All benchmarks, one JSON object a line, and what they found beside this file: `make bench`."""

from __future__ import annotations

import itertools
from pathlib import Path

from tests.benchmarks import (
    commits,
    factory,
    loader,
    loop,
    overlap,
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
from tests.benchmarks.ratio import show
from tests.record import write_record

HERE = Path(__file__).parent

if __name__ == "__main__":
    rows = show(
        itertools.chain(
            startup.main(repeats=7),
            loop.main(steps=20, batch_size=32, repeats=5),
            steps.main(steps=4, batch_size=16, repeats=3),
            stored.main(steps=6, batch_size=32, repeats=5),
            ranks.main(steps=8, batch_size=32, repeats=5),
            factory.main(teacher=str(loop.EMOJI), shards=4, repeats=3),
            overlap.main(shards=12, repeats=3),
            loader.main(samples=2048, repeats=9),
            tars.main(samples=2048, repeats=5),
            commits.main(shards=10_000),
            scaling.main(shards=[10, 1_000, 100_000]),
            simulation.main(shard_s=60.0, mtbf_h=8.0),
            sampling.main(images=16, repeats=3),
        )
    )
    machine = write_record(HERE, {"benchmarks": rows})
    targets.write(rows, HERE, machine)
