"""When sampling trajectories has paid for itself: how many training steps on stored paths save as many seconds.

    python -m tests.benchmarks.breakeven [--steps 3] [--repeats 5]

LCM on the emoji teacher, as recipes/compare/emoji has it online and stored, in one process and in turns. Online it
reads real images, for which nothing is sampled. The ratio is in trainings of the recipe's length: how many trials of
a search pay. Told beside is what counted passes of the network say. Prints JSON.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import torch

from fewstep.orchestrator.generation.shard_makers import ShardSampler
from fewstep.orchestrator.recipe.parsing import load
from tests.benchmarks.factory import factory, new_commit_log
from tests.benchmarks.ratio import Row, median_of, rate, show
from tests.benchmarks.work import Work

RECIPES = Path(__file__).parents[2] / "recipes/compare/emoji"
SAMPLES = 64  # that are timed; a batch


def main(steps: int, repeats: int) -> Iterator[Row]:
    """Measure."""
    torch.set_num_threads(1)
    recipe, online = (load(str(RECIPES / name)) for name in ("lcm-stored.yaml", "lcm.yaml"))
    timed = recipe.trajectories.model_copy(update={"samples": SAMPLES, "shard_size": SAMPLES, "batch_size": SAMPLES})
    with tempfile.TemporaryDirectory() as folder:
        commit_log = new_commit_log(recipe.model_copy(update={"trajectories": timed}), Path(folder))
        sampler, revisions = ShardSampler(commit_log, "cpu", 1), itertools.count()
        size = recipe.training.batch_size
        works = [Work(sampler.teacher, told.method.build().rounds()[0], size) for told in (online, recipe)]
        acts = [
            (lambda: factory(sampler, next(revisions)), SAMPLES),
            *((partial(work.train, steps), steps) for work in works),
        ]
        for act, _ in acts:
            act()
        seconds = [[1 / rate(act, work) for act, work in acts] for _ in range(repeats)]
    samples = recipe.trajectories.samples
    paid = [samples * row / (taught - stored) for row, taught, stored in seconds]
    row_s, online_s, stored_s = (statistics.median(column) for column in zip(*seconds, strict=True))
    passes = [size * work.passes() for work in works]
    yield {
        "benchmark": "break-even, lcm",
        **median_of([steps_paid / recipe.training.steps for steps_paid in paid]),
        "steps": round(statistics.median(paid)),
        "counted_steps": round(samples * sampler.plan.teacher_evaluations / SAMPLES / (passes[0] - passes[1])),
        "generate_s": round(samples * row_s, 1),
        "online_step_s": round(online_s, 3),
        "stored_step_s": round(stored_s, 3),
        "samples": samples,
        "batch_size": size,
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()
    show(main(args.steps, args.repeats))
