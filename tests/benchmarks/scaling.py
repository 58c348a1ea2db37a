"""What a data set of many shards costs before and beside the work itself: seconds and memory as shards grow.

    python -m tests.benchmarks.scaling [--shards 10 1000 100000]

Plan, resume (read every commit), publish (write a version), read that version, verify every file, and shuffle (the
order up to the first batch), each in a process of its own, on synthetic commits: shards of 8 rows that share one
file's bytes. Linear is a ratio of 100 between the last two sizes; memory is by how much the process's peak grows.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import torch

from fewstep.orchestrator.dataloader.order import Order
from fewstep.orchestrator.datasets.commit_log import Ledger, open_ledger
from fewstep.orchestrator.datasets.dataset import Dataset
from fewstep.orchestrator.datasets.manifest import CONDITIONS
from tests.benchmarks.commits import synthetic
from tests.benchmarks.ratio import Row, median_of, show
from tests.faults.work import COMPUTE
from tests.peak import peak


def plan(ledger: Ledger) -> None:
    """Every shard, its batches, and what all that takes."""
    shards = ledger.plan.shards()
    assert sum(len(ledger.plan.batches(shard)) for shard in shards) and ledger.plan.total_bytes and ledger.plan.hash


def resume(ledger: Ledger) -> None:
    """Every commit, and what is missing."""
    commits, broken = ledger.commits()
    assert not broken and all(shard.name in commits for shard in ledger.plan.shards())


def publish(ledger: Ledger) -> None:
    """Every commit, and a version of them all."""
    ledger.publish(ledger.commits()[0])


def read(ledger: Ledger) -> None:
    """Open the version."""
    assert Dataset.open(ledger.url, 1).row_groups().sizes


def verify(ledger: Ledger) -> None:
    """Every byte."""
    assert not ledger.verify().broken


def shuffle(ledger: Ledger) -> None:
    """The version, and the first two blocks of an epoch."""
    order = Order(tuple(Dataset.open(ledger.url, 1).row_groups().sizes), seed=0)
    assert len(order.block(order.block(0).stop).rows)


STAGES: tuple[Callable[[Ledger], None], ...] = (plan, resume, publish, read, verify, shuffle)


def new_dataset(folder: Path, shards: int) -> Ledger:
    """Synthetic commits, with a file for each."""
    ledger = synthetic(folder, shards)
    ids = torch.arange(-1, ledger.plan.num_conditions)
    ledger.commit(CONDITIONS, 0, {"condition_id": ids, "prompt": ids.half()[:, None]}, {}, COMPUTE)
    place, (first, *others) = Path(ledger.url), ledger.plan.shards()
    (file,) = (place / "shards" / first.name).iterdir()
    for number, shard in enumerate(others, 1):
        (place / "shards" / shard.name).mkdir()
        before, file = file, place / "shards" / shard.name / file.name
        if number % 10_000:
            os.link(before, file)
        else:  # ext4 takes 65,000 names of one file
            shutil.copy(before, file)
    return ledger


def measured(stage: int, url: str, samples: int) -> tuple[float, float]:
    """Seconds, and MB by which the peak grew."""
    torch.set_num_threads(1)
    opened = open_ledger(url)
    ledger = Ledger(opened.store, opened.plan.model_copy(update={"samples": samples}), opened.teacher)
    before, started = peak(), time.perf_counter()
    STAGES[stage](ledger)
    seconds = time.perf_counter() - started
    return seconds, (peak() - before) / 1024**2


def main(shards: Sequence[int]) -> Iterator[Row]:
    """Measure."""
    found: list[list[tuple[float, float]]] = [[] for _ in STAGES]
    spawn = multiprocessing.get_context("spawn")
    for count in shards:
        with (
            tempfile.TemporaryDirectory() as folder,
            ProcessPoolExecutor(1, spawn, max_tasks_per_child=1) as process,
        ):
            ledger = new_dataset(Path(folder), count)
            for stage, results in enumerate(found):
                results.append(process.submit(measured, stage, ledger.url, ledger.plan.samples).result())
    for act, results in zip(STAGES, found, strict=True):
        seconds, memory = ([result[place] for result in results] for place in range(2))
        yield {
            "benchmark": f"scaling, {act.__name__}",
            "shards": list(shards),
            "seconds": [round(value, 4) for value in seconds],
            "memory_mb": [round(value, 1) for value in memory],
            **median_of([seconds[-1] / seconds[-2]]),
            "times_the_shards": shards[-1] / shards[-2],
        }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shards", type=int, nargs="+", default=[10, 1_000, 100_000])
    show(main(parser.parse_args().shards))
