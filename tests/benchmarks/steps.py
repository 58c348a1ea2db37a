"""What each method's training step asks of its denoisers, counted by operations, against what its papers make of it.

    python -m tests.benchmarks.steps [--batch-size 4]

Prints JSON.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator

from tests.benchmarks.ratio import Row, median_of, show
from tests.benchmarks.work import Work, embedded_teacher
from tests.support.passes import EXPECTED


def main(batch_size: int) -> Iterator[Row]:
    """Count."""
    teacher = embedded_teacher()
    for name, expected in EXPECTED.items():
        work = Work(teacher, expected.round, batch_size)
        passes = work.passes(expected.steps)
        facts = {"passes": round(passes, 2), "papers_passes": expected.passes, "batch_size": batch_size}
        yield {"benchmark": f"passes, {name}", **median_of([passes / expected.passes]), **facts}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--batch-size", type=int, default=4)
    show(main(parser.parse_args().batch_size))
