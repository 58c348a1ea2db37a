"""What each ratio has to be, and a table of what it was: benchmarks.json and benchmarks.md beside this file."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import cast

from tests.benchmarks import TEACHERS, ranks, scaling
from tests.benchmarks.pauses import INTERVALS
from tests.benchmarks.ratio import Row
from tests.support.passes import EXPECTED, FEWER


@dataclass(frozen=True)
class Target:
    """A bound on a ratio, whether more is better, and what the ratio is of."""

    bound: float
    higher: bool
    of: str


@dataclass(frozen=True)
class Result:
    """A ratio by its target: the median of its repeats, and the least and the greatest."""

    name: str
    ratio: float
    target: float
    higher: bool
    low: float
    high: float

    @property
    def holds(self) -> bool:
        """Whether the median keeps to the target."""
        return self.ratio >= self.target if self.higher else self.ratio <= self.target


BARE = "work per second, of a bare loop's"
CEILING = "gain over the online step, of what counted floating-point operations allow"
TWINS = {
    "replicated": "DistributedDataParallel",
    "sharded": "ZeroRedundancyOptimizer under DistributedDataParallel",
}
TARGETS: Mapping[str, Target] = {
    "training loop": Target(0.95, True, BARE),
    **{
        f"training, {name}": Target(0.01, False, f"time, of all at the default {field}")
        for name, field in INTERVALS.items()
    },
    **{f"passes, {name}": Target(FEWER, False, "passes of its denoisers a step, of its papers'") for name in EXPECTED},
    **{
        name.format(rows): Target(0.95, True, f"steps per second, of those of {TWINS[twin]}")
        for rows in ranks.ROWS
        for name, (_, twin) in ranks.PAIRS.items()
    },
    **{f"stored path, {name}": Target(0.9, True, CEILING) for name in ("lcm", "tcd", "consistency", "progressive")},
    **{f"factory, {name}, one actor's work in one process": Target(0.95, True, BARE) for name in TEACHERS},
    **{
        f"factory, {name}, two actors": Target(0.9, True, "samples per second, of two bare processes'")
        for name in TEACHERS
    },
    "factory, writing beside sampling": Target(1.2, False, "seconds, of the longer of the two"),
    "ledger, scan of ten times the shards": Target(15, False, "seconds, of a tenth of the shards"),
    **{
        f"scaling, {act.__name__}": Target(200, False, "seconds, of a hundredth of the shards")
        for act in scaling.STAGES
    },
    "loader, verified": Target(0.8, True, "rows per second, of a bare pyarrow loop that hashes"),
    "loader, later epochs": Target(0.9, True, "rows per second, of a bare pyarrow loop"),
    "loader, later epochs, against raw reads": Target(0.5, True, "rows per second, of reading the bytes alone"),
    "loader, start in the middle of an epoch": Target(0.9, True, "starts per second, of those at the beginning"),
    "loader, against WebDataset": Target(1.0, True, "rows per second, of WebDataset's"),
    "loader, against mosaicml-streaming": Target(1.0, True, "rows per second, of mosaicml-streaming's"),
    "simulation, against 1 real actor": Target(0.9, True, "the shorter of simulated and real seconds, of the longer"),
    "simulation, against 2 real actors": Target(0.9, True, "the shorter of simulated and real seconds, of the longer"),
    "start-up, fewstep --help": Target(3.0, False, "seconds, of importing typer and rich"),
    "start-up, import methods": Target(1.2, False, "seconds, of importing torch"),
    "first training step, ours": Target(
        1.0, False, "seconds before it, of the least of Ray's, imports' and DeepSpeed's"
    ),
    "first training step, files that are compiled": Target(0.0, False, "files, of DeepSpeed's compiled helpers"),
}


def results(rows: Sequence[Row]) -> list[Result]:
    """Of the rows that have a target, in the order of the targets."""
    found = {str(row["benchmark"]): row for row in rows}
    kept = []
    for name, target in TARGETS.items():
        if name in found:
            ratios = cast(Sequence[float], found[name]["ratios"])
            ratio = cast(float, found[name]["ratio"])
            kept.append(Result(name, ratio, target.bound, target.higher, min(ratios), max(ratios)))
    return kept


def write(rows: Sequence[Row], folder: Path, machine: str) -> None:
    """Both files."""
    found = results(rows)
    (folder / "benchmarks.json").write_text(json.dumps([asdict(result) for result in found], indent=1) + "\n")
    lines = [
        f"Ratios within one run on {machine}: the median, and the range of its repeats.",
        "Seconds, sizes and repeats of each are in results.json.",
        "",
        "| benchmark | of what | ratio | range | target | |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for one in found:
        bound, holds = f"{'≥' if one.higher else '≤'} {one.target:g}", "" if one.holds else "missed"
        ratio, spread = _short(one.ratio), f"{_short(one.low)} to {_short(one.high)}"
        lines.append(f"| {one.name} | {TARGETS[one.name].of} | {ratio} | {spread} | {bound} | {holds} |")
    (folder / "benchmarks.md").write_text("\n".join(lines) + "\n")


def _short(ratio: float) -> str:
    return f"{ratio:.2f}" if ratio >= 0.1 else f"{ratio:.1g}"
