"""Steps on stored paths against the same steps with the teacher online and guided.

    python -m tests.benchmarks.stored [--steps 6] [--batch-size 32] [--repeats 5]

The ceiling is counted: how many passes of the network either step takes, a backward pass as two. Prints JSON.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import cast

import torch

from methods import METHODS
from tests.benchmarks.ratio import Row, median_of, paired, show
from tests.benchmarks.work import Work, embedded_teacher

GUIDED: Mapping[str, Mapping[str, object]] = {
    "lcm": {},
    "tcd": {},
    "consistency": {"guidance_scale": 3.0, "metric": "huber"},
    "progressive": {"guidance_scale": 3.0, "teacher_steps": 50, "student_steps": 25},
}


def main(steps: int, batch_size: int, repeats: int) -> Iterator[Row]:
    """Measure."""
    torch.set_num_threads(1)
    teacher = embedded_teacher()
    for name, told in GUIDED.items():
        modes = ("online", "stored")
        online, stored = (
            Work(teacher, METHODS[name](**told, teacher_step=mode).rounds()[0], batch_size) for mode in modes
        )
        passes = []
        for work in (online, stored):
            work.train(1)
            passes.append(sum(call.passes for made in work.calls().values() for call in made) // batch_size)
        ceiling = passes[0] / passes[1]
        result = paired(partial(online.train, steps), partial(stored.train, steps), steps, repeats)
        yield {
            "benchmark": f"stored path, {name}",
            **result,
            **median_of([ratio / ceiling for ratio in cast(Sequence[float], result["ratios"])]),
            "speed": result["ratio"],
            "ceiling": round(ceiling, 3),
            "passes": passes,
            "batch_size": batch_size,
        }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()
    show(main(args.steps, args.batch_size, args.repeats))
