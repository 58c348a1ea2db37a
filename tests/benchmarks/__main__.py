"""All benchmarks, one JSON object a line: `make bench`."""

from __future__ import annotations

from tests.benchmarks import commits, factory, loader, loop, overlap

loop.main(steps=20, batch_size=32, repeats=5)
factory.main(teacher=str(loop.EMOJI), shards=1, repeats=3)
loader.main(samples=512, repeats=5)
overlap.main(shards=12, repeats=3)
commits.main(shards=10_000)
