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
from fewstep.orchestrator.datasets.commit_log import CommitLog, open_commit_log
from fewstep.orchestrator.datasets.dataset import Dataset
from fewstep.orchestrator.datasets.manifest import CONDITIONS
from tests.benchmarks.commits import synthetic
from tests.benchmarks.ratio import Row, median_of, show
from tests.support.peak import peak
from tests.support.work import COMPUTE


def plan(commit_log: CommitLog) -> None:
    """Every shard, its batches, and what all that takes."""
    shards = commit_log.plan.shards()
    assert (
        sum(len(commit_log.plan.batches(shard)) for shard in shards)
        and commit_log.plan.total_bytes
        and commit_log.plan.hash
    )


def resume(commit_log: CommitLog) -> None:
    """Every commit, and what is missing."""
    commits, broken = commit_log.commits()
    assert not broken and all(shard.name in commits for shard in commit_log.plan.shards())


def publish(commit_log: CommitLog) -> None:
    """Every commit, and a version of them all."""
    commit_log.publish(commit_log.commits()[0])


def read(commit_log: CommitLog) -> None:
    """Open the version."""
    assert Dataset.open(commit_log.url, 1).row_groups().sizes


def verify(commit_log: CommitLog) -> None:
    """Every byte."""
    assert not commit_log.verify().broken


def shuffle(commit_log: CommitLog) -> None:
    """The version, and the first two blocks of an epoch."""
    order = Order(tuple(Dataset.open(commit_log.url, 1).row_groups().sizes), seed=0)
    assert len(order.block(order.block(0).stop).rows)


STAGES: tuple[Callable[[CommitLog], None], ...] = (plan, resume, publish, read, verify, shuffle)


def new_dataset(folder: Path, shards: int) -> CommitLog:
    """Synthetic commits, with a file for each."""
    commit_log = synthetic(folder, shards)
    ids = torch.arange(-1, commit_log.plan.num_conditions)
    commit_log.commit(CONDITIONS, 0, {"condition_id": ids, "prompt": ids.half()[:, None]}, {}, COMPUTE)
    place, (first, *others) = Path(commit_log.url), commit_log.plan.shards()
    (file,) = (place / "shards" / first.name).iterdir()
    for number, shard in enumerate(others, 1):
        (place / "shards" / shard.name).mkdir()
        before, file = file, place / "shards" / shard.name / file.name
        if number % 10_000:
            os.link(before, file)
        else:  # ext4 takes 65,000 names of one file
            shutil.copy(before, file)
    return commit_log


def measured(stage: int, url: str, samples: int) -> tuple[float, float]:
    """Seconds, and MB by which the peak grew."""
    torch.set_num_threads(1)
    opened = open_commit_log(url)
    commit_log = CommitLog(opened.store, opened.plan.model_copy(update={"samples": samples}), opened.teacher)
    before, started = peak(), time.perf_counter()
    STAGES[stage](commit_log)
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
            commit_log = new_dataset(Path(folder), count)
            for stage, results in enumerate(found):
                results.append(process.submit(measured, stage, commit_log.url, commit_log.plan.samples).result())
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
