"""All benchmarks, one JSON object a line: `make bench`."""

from __future__ import annotations

from tests.benchmarks import factory, loader, loop

loop.main(steps=20, batch_size=32, repeats=5)
factory.main(teacher=str(loop.EMOJI), shards=1, repeats=3)
loader.main(samples=512, repeats=5)
