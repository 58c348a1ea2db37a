"""Writing beside sampling: wall time over the longer of the two, with the overlap and without it.

    python -m tests.benchmarks.overlap [--shards 24] [--repeats 5]

Sampling is a pause, tuned to take as long as encoding, hashing, writing and committing a shard does. Perfect
overlap is a ratio near 1, as the first shard's sampling and the last one's writing have nothing beside them; none is 2.
Prints JSON.
"""

from __future__ import annotations

import argparse
import itertools
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch

from fewstep.orchestrator.compute.actor_pool import IN_FLIGHT
from fewstep.orchestrator.datasets.commit_log import CommitLog
from fewstep.orchestrator.datasets.plan import Shard
from fewstep.orchestrator.datasets.shard_file import Columns
from fewstep.orchestrator.generation.shard_makers import ShardSampler, scalars
from fewstep.orchestrator.recipe.recipe import Recipe
from tests.benchmarks.factory import new_commit_log
from tests.benchmarks.ratio import Row, median_of, rate, show
from tests.support import tiny

SAMPLES = 128  # of a shard: 13 MB


class Paused(ShardSampler):
    """Samples by waiting."""

    pause_s = 0.0

    def __init__(self, commit_log: CommitLog) -> None:
        super().__init__(commit_log, "cpu", 1)
        self._path = torch.randn(SAMPLES, *commit_log.plan.path_shape(0))

    def sample(self, shard: Shard) -> tuple[Columns, list[float]]:
        """Random rows, after the pause."""
        time.sleep(self.pause_s)
        return {**scalars(self.plan, shard.samples), "path": self._path}, [0.0] * len(self.plan.saved_points)


def main(shards: int, repeats: int) -> Iterator[Row]:
    """Measure."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        data = tiny.recipe_data(Path(folder))
        told = {"samples": SAMPLES * shards, "num_inference_steps": 99, "batch_size": 32, "shard_size": SAMPLES}
        data["trajectories"] = {"prompts": str(tiny.prompts(Path(folder))), "dtype": "float32", **told}
        sampler = Paused(new_commit_log(Recipe.model_validate(data), Path(folder) / "store"))
        names, revisions = [shard.name for shard in sampler.plan.shards()], itertools.count()

        def seconds(threads: int) -> float:
            revision = next(revisions)
            with ThreadPoolExecutor(threads) as actor:
                return 1 / rate(lambda: list(actor.map(lambda name: sampler.make(name, revision), names)) and None, 1)

        ratios: dict[str, list[float]] = {"with": [], "without": []}
        for _ in range(repeats):
            sampler.pause_s = 0.0
            longer = seconds(1)  # writing alone, and by the pause sampling alone as well
            sampler.pause_s = longer / shards
            ratios["with"].append(seconds(IN_FLIGHT) / longer)
            ratios["without"].append(seconds(1) / longer)
    facts = {"shards": shards, "write_s": round(longer / shards, 3)}
    yield {"benchmark": "factory, writing beside sampling", **median_of(ratios["with"]), **facts}
    yield {"benchmark": "factory, writing after sampling", **median_of(ratios["without"]), **facts}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shards", type=int, default=24)
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()
    show(main(args.shards, args.repeats))
