"""The loader against a bare pyarrow loop over the same files, hashing as much.

    python -m tests.benchmarks.loader [--samples 512] [--repeats 5]

The first epoch, where both hash what they read, and a later one, where neither does. Then what a start in the middle
of an epoch costs against one at the beginning: the first batch of a loader that has read nothing.
"""

from __future__ import annotations

import argparse
import hashlib
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import torch

from orchestrator.dataset import Dataset, RowGroups
from orchestrator.ledger import create_ledger
from orchestrator.loader import Loader
from orchestrator.plan import make_plan
from orchestrator.prompts import read_prompts
from orchestrator.recipe import Recipe
from orchestrator.sampler import ShardSampler, commit_conditions
from orchestrator.teacher import Teacher
from tests import tiny
from tests.benchmarks.ratio import Row, paired, show

BATCH = 32


def new_dataset(folder: Path, samples: int) -> Dataset:
    """Trajectories of the tiny teacher, 50 steps long."""
    data = tiny.recipe_data(folder)
    told = {"samples": samples, "num_inference_steps": 50, "batch_size": 32, "shard_size": 128, "dtype": "float32"}
    data["trajectories"] = {"prompts": str(tiny.prompts(folder)), **told}
    recipe = Recipe.model_validate(data)
    prompts = read_prompts(recipe.trajectories.prompts)
    ledger = create_ledger(
        str(folder / "store"), make_plan(recipe, Teacher(recipe.teacher).card, prompts, 32), prompts, recipe.teacher
    )
    commit_conditions(ledger, 0, ledger.plan.num_conditions, "cpu", 1)
    sampler = ShardSampler(ledger, "cpu", 1)
    for shard in ledger.plan.shards():
        sampler.make(shard.name, 0)
    return Dataset.open(ledger.url, ledger.publish(ledger.commits()[0]).version)


def bare(files: list[Path], shape: tuple[int, ...], *, hashes: bool) -> None:
    """Every row group of every file as a float32 tensor."""
    for file in files:
        if hashes:
            hashlib.sha256(file.read_bytes()).digest()
        parquet = pq.ParquetFile(file)
        for group in range(parquet.num_row_groups):
            for chunk in parquet.read_row_group(group).column("path").chunks:
                values = np.frombuffer(chunk.buffers()[1], dtype=np.float32)
                torch.from_numpy(values.copy()).view(-1, *shape)


def main(samples: int, repeats: int) -> Iterator[Row]:
    """Measure."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        dataset = new_dataset(Path(folder), samples)
        files = sorted((Path(dataset.place) / "shards").rglob("*.parquet"))
        files = [file for file in files if "path" in pq.read_schema(file).names]
        conditions = dataset.conditions()

        def loader(groups: RowGroups) -> Loader:
            return Loader(
                groups,
                batch_size=BATCH,
                rows=range(BATCH),
                seed=0,
                conditions=conditions.cond,
                uncond=conditions.uncond,
                device=torch.device("cpu"),
                columns=dict,
            )

        def epoch(groups: RowGroups) -> None:
            mine = loader(groups)
            for step in range(samples // BATCH):
                mine.batch(step)

        def begin(step: int) -> None:
            loader(dataset.row_groups()).batch(step)

        warm = dataset.row_groups()
        epoch(warm)
        shape = dataset.plan.path_shape
        first = paired(lambda: bare(files, shape, hashes=True), lambda: epoch(dataset.row_groups()), samples, repeats)
        later = paired(lambda: bare(files, shape, hashes=False), lambda: epoch(warm), samples, repeats)
        start = paired(lambda: begin(0), lambda: begin(samples // BATCH // 2), BATCH, repeats)
    size = {"bytes": dataset.plan.total_bytes}
    yield {"benchmark": "loader, verified", **first, **size}
    yield {"benchmark": "loader, later epochs", **later, **size}
    yield {"benchmark": "loader, start in the middle of an epoch", **start, **size}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--samples", type=int, default=512)
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()
    show(main(args.samples, args.repeats))
