"""Draw the pictures of the teacher's card: what it makes, and the nearest training pictures beside samples.

python recipes/teachers/fashion/card.py [FOLDER]   # of the four .gz files; Debian's without
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from data import CLASSES, DEBIAN, load
from torch import Tensor

from fewstep.orchestrator.pipelines.class_conditional import ClassConditionalPipeline
from fewstep.recipes.teachers.sheet import sheet

HERE = Path(__file__).parent
STEPS, GUIDANCE = 50, 1.5
EACH = 8  # pictures of a class


def main(data: Path) -> None:
    """Write samples.png and nearest.png."""
    pipeline = ClassConditionalPipeline.from_pretrained(HERE)
    pipeline.set_progress_bar_config(disable=True)
    labels = [label for label in range(len(CLASSES)) for _ in range(EACH)]
    generators = [torch.Generator().manual_seed(seed) for seed in range(len(labels))]
    images = pipeline(labels, STEPS, GUIDANCE, generator=generators, output_type="pt", return_dict=False)[0]
    if not isinstance(images, Tensor):
        raise TypeError(f"the pipeline answers output_type='pt' with {type(images).__name__}, not with a tensor")
    rows = [list(row) for row in images.split(EACH)]
    sheet(rows, [[name] * EACH for name in CLASSES]).save(HERE / "samples.png")

    pictures, classes = load(data, "train")
    seen = (pictures.flatten(1) + 1) / 2
    chosen = images[::EACH]
    nearest = torch.cdist(chosen[:, 0].flatten(1), seen).topk(6, largest=False).indices
    rows = [[one, *pipeline.decode(pictures[near])] for one, near in zip(chosen, nearest, strict=True)]
    titles = [[name, *(CLASSES[n] for n in classes[near])] for name, near in zip(CLASSES, nearest, strict=True)]
    sheet(rows, titles).save(HERE / "nearest.png")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if sys.argv[1:] else DEBIAN)
