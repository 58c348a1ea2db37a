"""The loader against a bare pyarrow loop over the same files, hashing as much, and against reading their bytes raw.

    python -m tests.benchmarks.loader [--samples 2560] [--repeats 9]

The first epoch, where both hash what they read, and later ones, where neither does: the loader shuffles, the bare
loop hands out slices of a row group, and raw is `read_bytes` of each file and nothing else. All files are in the
page cache, so that memory is what is measured; raw reads are measured with a cold cache as well, of a loader that
has just been started. Then what a start in the middle of an epoch costs against one at the beginning: the first
batch of a loader that has read nothing.
"""

from __future__ import annotations

import argparse
import hashlib
import itertools
import os
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import cast

import numpy as np
import pyarrow.parquet as pq
import torch

from fewstep.orchestrator.dataloader.loader import Loader
from fewstep.orchestrator.datasets.commit_log import create_commit_log
from fewstep.orchestrator.datasets.dataset import Conditions, Dataset, RowGroups
from fewstep.orchestrator.datasets.manifest import CONDITIONS
from fewstep.orchestrator.generation.shard_makers import scalars
from fewstep.orchestrator.storage.local import LocalStore
from tests.benchmarks.ratio import Row, paired, show
from tests.support.work import COMPUTE, PLAN, TEACHER

BATCH = 32


def new_dataset(folder: Path, samples: int) -> Dataset:
    """Random paths of 50 steps, 52 kB each, in row groups of 80."""
    shape = {"latent_shape": (4, 8, 8), "saved_points": tuple(range(51)), "dtype": "float32"}
    plan = PLAN.model_copy(update={"samples": samples, "shard_size": 160, **shape})
    commit_log = create_commit_log(str(folder), plan, [str(i) for i in range(plan.num_prompts)], TEACHER)
    conditions = {"condition_id": torch.arange(-1, plan.num_conditions), "prompt": torch.randn(8, 12, 16)}
    commit_log.commit(CONDITIONS, 0, conditions, {}, COMPUTE)
    for shard in plan.shards():
        rows = {**scalars(plan, shard.samples), "path": torch.randn(len(shard.samples), *plan.path_shape(0))}
        commit_log.commit(shard.name, 0, rows, {}, COMPUTE)
    return Dataset.open(commit_log.url, commit_log.publish(commit_log.commits()[0]).version)


def new_loader(latent_shape: tuple[int, ...], conditions: Conditions, groups: RowGroups) -> Loader:
    """As one process of a training has it."""
    return Loader(
        groups,
        batch_size=BATCH,
        rows=range(BATCH),
        seed=0,
        conditions=conditions.cond,
        uncond=conditions.uncond,
        size_conditioning={latent_shape: {}},
        device=torch.device("cpu"),
        columns=dict,
    )


def later_epochs(loader: Loader, batches: int) -> Callable[[], None]:
    """What takes the next epoch at each call; the first has passed."""
    endless = loader.batches(0)

    def later() -> None:
        for _ in itertools.islice(endless, batches):
            pass

    later()
    return later


def bare(files: list[Path], shape: tuple[int, ...], *, hashes: bool) -> None:
    """Every row group of every file as a float32 tensor, in slices of a batch."""
    for file in files:
        if hashes:
            hashlib.sha256(file.read_bytes()).digest()
        parquet = pq.ParquetFile(file)
        for group in range(parquet.num_row_groups):
            for chunk in parquet.read_row_group(group).column("path").chunks:
                values = np.frombuffer(chunk.buffers()[1], dtype=np.float32)
                list(torch.from_numpy(values.copy()).view(-1, *shape).split(BATCH))


def raw(files: list[Path]) -> None:
    """Their bytes."""
    for file in files:
        file.read_bytes()


def cooled(files: list[Path], store: LocalStore) -> None:
    """Out of the page cache, which keeps what is mapped."""
    store._mapped.cache_clear()
    for file in files:
        with file.open("rb") as stream:
            os.fsync(stream.fileno())
            os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def main(samples: int, repeats: int) -> Iterator[Row]:
    """Measure."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        dataset = new_dataset(Path(folder), samples)
        store = cast(LocalStore, dataset._commit_log.store)
        files = sorted((Path(dataset.url) / "shards").rglob("*.parquet"))
        loader = partial(new_loader, dataset.plan.latent_shape, dataset.conditions())
        batches = samples // BATCH

        def epoch(groups: RowGroups) -> None:
            for _ in itertools.islice(loader(groups).batches(0), batches):
                pass

        begun = list[Loader]()

        def begin(step: int) -> None:
            begun.append(loader(dataset.row_groups()))
            begun[-1].batch(step)

        def settled() -> None:
            """Nothing is read any more for the start before, which has its first batch and reads on."""
            while begun:
                begun.pop()._readers.shutdown()

        warm, shape = dataset.row_groups(), dataset.plan.path_shape(0)
        epoch(warm)
        later = later_epochs(loader(warm), batches)
        results = {
            "verified": paired(
                lambda: bare(files, shape, hashes=True), lambda: epoch(dataset.row_groups()), samples, repeats
            ),
            "later epochs": paired(lambda: bare(files, shape, hashes=False), later, samples, repeats),
            "later epochs, against raw reads": paired(lambda: raw(files), later, samples, repeats),
            "later epochs, against raw reads, cold": paired(
                lambda: raw(files), lambda: epoch(warm), samples, repeats, before=lambda: cooled(files, store)
            ),
            "start in the middle of an epoch": paired(
                lambda: begin(0), lambda: begin(batches // 2), BATCH, repeats, before=settled
            ),
        }
        start = results["start in the middle of an epoch"]
        start["first_batch_s"] = round(BATCH / cast(float, start["bare_per_s"]), 4)
        size = {"bytes": dataset.plan.total_bytes, "batch_size": BATCH, "row_groups": len(warm.sizes)}
    for name, result in results.items():
        yield {"benchmark": f"loader, {name}", **result, **size}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--samples", type=int, default=2560)
    parser.add_argument("--repeats", type=int, default=9)
    args = parser.parse_args()
    show(main(args.samples, args.repeats))
