"""Each method's training step against its own arithmetic: the same network evaluations and optimizer steps alone.

    python -m tests.benchmarks.steps [--steps 4] [--batch-size 16] [--repeats 5]

What a step evaluates is recorded once, and then done again with nothing around it. The second derivatives of R1 are
not counted. Prints JSON.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from functools import partial

import torch

from fewstep.methods import METHODS
from fewstep.methods.base import Method
from tests.benchmarks.ratio import Row, paired, show
from tests.benchmarks.work import Work, embedded_teacher

CHANGES: dict[str, dict[str, object]] = {
    "instaflow": {"perceptual_after": None}
}  # the others as their papers have them


def main(steps: int, batch_size: int, repeats: int) -> Iterator[Row]:
    """Measure."""
    torch.set_num_threads(1)
    teacher = embedded_teacher()
    for name, build in METHODS.items():
        method: Method = build(**CHANGES.get(name, {}))
        work = Work(teacher, method.rounds()[0], batch_size)
        work.train(1)
        calls = work.calls()
        result = paired(partial(work.again, calls, steps), partial(work.train, steps), steps, repeats)
        counted = {net: sum(call.passes for call in made) // batch_size for net, made in calls.items()}
        yield {"benchmark": f"training step, {name}", **result, "passes": counted, "batch_size": batch_size}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()
    show(main(args.steps, args.batch_size, args.repeats))
