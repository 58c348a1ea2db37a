"""The loader against mosaicml-streaming on the same rows: shuffled batches of tensors, in one process.

    STREAMING_PYTHON=PATH python -m tests.benchmarks.mosaic [--samples 2560] [--repeats 5]

Its pins exclude ours, so that it needs an environment of its own, whose interpreter is told: fewstep installed there,
then `pip install --no-deps mosaicml-streaming` and what that imports (brotli, catalogue, python-snappy, torchvision,
zstd). Both loaders run there. It shuffles as its own default does; neither checks a hash. Prints JSON; nothing where
no interpreter is told.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch
from torch.utils.data import DataLoader

from fewstep.orchestrator.datasets.dataset import Dataset
from tests.benchmarks.loader import BATCH, later_epochs, new_dataset, new_loader
from tests.benchmarks.ratio import Row, paired, show


def packed(dataset: Dataset, folder: str) -> None:
    """The rows as MDS shards."""
    from streaming import MDSWriter  # pyright: ignore[reportMissingImports] - see above

    groups = dataset.row_groups()
    with MDSWriter(out=folder, columns={"path": "ndarray"}) as writer:
        for number in range(len(groups.sizes)):
            for path in groups.read(number)["path"].numpy():
                writer.write({"path": path})


def measured(samples: int, repeats: int) -> Row:
    """Where mosaicml-streaming is installed."""
    from streaming import StreamingDataset  # pyright: ignore[reportMissingImports]

    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        dataset = new_dataset(Path(folder) / "ours", samples)
        packed(dataset, f"{folder}/mds")
        streamed = DataLoader(StreamingDataset(local=f"{folder}/mds", shuffle=True, batch_size=BATCH), BATCH)
        loader = new_loader(dataset.plan.latent_shape, dataset.conditions(), dataset.row_groups())
        ours = later_epochs(loader, samples // BATCH)

        def theirs() -> None:
            assert sum(len(batch["path"]) for batch in streamed) == samples

        theirs()
        found = paired(theirs, ours, samples, repeats)
        return {"benchmark": "loader, against mosaicml-streaming", **found, "batch_size": BATCH}


def main(samples: int, repeats: int) -> Iterator[Row]:
    """Measure, in the environment that has it."""
    if importlib.util.find_spec("streaming"):
        yield measured(samples, repeats)
    elif python := os.environ.get("STREAMING_PYTHON"):
        command = [python, "-m", "tests.benchmarks.mosaic", f"--samples={samples}", f"--repeats={repeats}"]
        yield json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1])


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--samples", type=int, default=2560)
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()
    show(main(args.samples, args.repeats))
