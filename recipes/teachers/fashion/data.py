"""Fashion-MNIST as its authors publish it: 60,000 pictures to train on and 10,000 to judge by, of ten classes."""

from __future__ import annotations

import gzip
from pathlib import Path

import torch
from torch import Tensor

DEBIAN = Path("/usr/share/datasets/fashion-mnist")  # where apt-get install dataset-fashion-mnist puts it
CLASSES = (
    "T-shirt", "trousers", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot",
)  # fmt: skip


def load(folder: Path, split: str) -> tuple[Tensor, Tensor]:
    """Pictures [n, 1, 28, 28] in -1..1 and their classes [n]; split is "train" or "t10k"."""
    pixels = gzip.decompress((folder / f"{split}-images-idx3-ubyte.gz").read_bytes())[16:]
    labels = gzip.decompress((folder / f"{split}-labels-idx1-ubyte.gz").read_bytes())[8:]
    pictures = torch.frombuffer(bytearray(pixels), dtype=torch.uint8).view(-1, 1, 28, 28)
    return pictures / 127.5 - 1, torch.frombuffer(bytearray(labels), dtype=torch.uint8).long()
