"""What starting costs, each in a fresh process: the command's help, and importing the methods.

    python -m tests.benchmarks.startup [--repeats 7]

Against importing the libraries that it cannot do without; less is better. Prints JSON.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from collections.abc import Iterator

from tests.benchmarks.ratio import Row, median_of, show

PAIRS = {
    "start-up, fewstep --help": (["-c", "import typer, rich"], ["-m", "fewstep", "--help"]),
    "start-up, import methods": (["-c", "import torch"], ["-c", "import fewstep.methods"]),
}


def seconds(arguments: list[str]) -> float:
    """Of a Python process with these."""
    started = time.perf_counter()
    subprocess.run([sys.executable, *arguments], check=True, capture_output=True)
    return time.perf_counter() - started


def main(repeats: int) -> Iterator[Row]:
    """Measure."""
    for name, (bare, ours) in PAIRS.items():
        for arguments in (bare, ours):
            seconds(arguments)  # from a warm cache
        pairs = [(seconds(bare), seconds(ours)) for _ in range(repeats)]
        facts = {"bare_s": round(pairs[-1][0], 3), "ours_s": round(pairs[-1][1], 3)}
        yield {"benchmark": name, **median_of([mine / plain for plain, mine in pairs]), **facts}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=7)
    show(main(parser.parse_args().repeats))
