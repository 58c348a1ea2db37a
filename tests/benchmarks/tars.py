"""The loader against WebDataset on the same rows: shuffled batches of decoded tensors, in one process.

    python -m tests.benchmarks.tars [--samples 2560] [--repeats 5]

WebDataset reads tars of .npy files with its usual shuffle buffer. Ours checks no hash after the first epoch, as in
training; WebDataset never checks one. Prints JSON; nothing where WebDataset is not installed.
"""

from __future__ import annotations

import argparse
import importlib.util
import io
import tarfile
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from fewstep.orchestrator.datasets.dataset import Dataset
from tests.benchmarks.loader import BATCH, later_epochs, new_dataset, new_loader
from tests.benchmarks.ratio import Row, paired, show

BUFFER = 1000  # samples


def packed(dataset: Dataset, folder: Path) -> list[str]:
    """The rows of each row group as a tar."""
    groups = dataset.row_groups()
    tars = []
    for number in range(len(groups.sizes)):
        rows = groups.read(number)
        tars.append(str(folder / f"{number:05d}.tar"))
        with tarfile.open(tars[-1], "w") as tar:
            for sample, path in zip(rows["sample_id"].tolist(), rows["path"].numpy(), strict=True):
                content = io.BytesIO()
                np.save(content, path)
                member = tarfile.TarInfo(f"{sample:08d}.npy")
                member.size = content.tell()
                content.seek(0)
                tar.addfile(member, content)
    return tars


def main(samples: int, repeats: int) -> Iterator[Row]:
    """Measure."""
    if importlib.util.find_spec("webdataset") is None:
        return
    import webdataset

    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        dataset = new_dataset(Path(folder) / "ours", samples)
        (Path(folder) / "tars").mkdir()
        tars = packed(dataset, Path(folder) / "tars")
        loader = new_loader(dataset.plan.latent_shape, dataset.conditions(), dataset.row_groups())
        ours = later_epochs(loader, samples // BATCH)

        def theirs() -> None:
            rows = webdataset.WebDataset(tars, shardshuffle=100).shuffle(BUFFER).decode().to_tuple("npy")
            seen = sum(len(torch.from_numpy(path)) for (path,) in rows.batched(BATCH))
            assert seen == samples

        theirs()
        yield {"benchmark": "loader, against WebDataset", **paired(theirs, ours, samples, repeats), "batch_size": BATCH}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--samples", type=int, default=2560)
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()
    show(main(args.samples, args.repeats))
