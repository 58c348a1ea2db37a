"""Steps on stored paths against the same steps with the teacher online and guided.

    python -m tests.benchmarks.stored [--steps 6] [--batch-size 64] [--repeats 7]

The ceiling is counted: the floating-point operations of either step, on the way back too. Beside it are those of the
denoisers alone, in passes. Prints JSON.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import cast

import torch

from fewstep.methods import METHODS
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
        works, passes, operations = (online, stored), list[float](), list[float]()
        for work in works:
            work.train(1)
            operations.append(work.operations())
            passes.append(work.passes())
        ceiling = operations[0] / operations[1]
        result = paired(partial(online.train, steps), partial(stored.train, steps), steps, repeats)
        yield {
            "benchmark": f"stored path, {name}",
            **result,
            **median_of([ratio / ceiling for ratio in cast(Sequence[float], result["ratios"])]),
            "speed": result["ratio"],
            "ceiling": round(ceiling, 3),
            "gigaflops": [round(each / 1e9, 1) for each in operations],
            "passes": [round(each, 2) for each in passes],
            "batch_size": batch_size,
        }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=7)
    args = parser.parse_args()
    show(main(args.steps, args.batch_size, args.repeats))
