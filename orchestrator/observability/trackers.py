"""Follows training in TensorBoard, Weights & Biases or MLflow, through their libraries, besides its own files."""

from __future__ import annotations

import hashlib
import importlib.util
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
from PIL import Image

from fewstep.orchestrator.errors import BadInput
from fewstep.orchestrator.files import write_whole

PROJECT = "fewstep"
PICTURES = "samples"  # the name of what the student makes


class Followed(Protocol):
    """What is followed: a recipe, as far as trackers know one."""

    @property
    def output(self) -> str:
        """Its last part names the run."""
        ...

    @property
    def trackers(self) -> Sequence[str]:
        """Names of TRACKERS."""
        ...

    def resolved(self) -> Mapping[str, object]:
        """Every setting."""
        ...


class Tracker(Protocol):
    """A place that a round is followed at. Where the round goes on, so does its record."""

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Finite numbers by their names in the metrics registry."""
        ...

    def picture(self, step: int, sheet: Image.Image) -> None:
        """Samples of the student."""
        ...

    def close(self) -> None:
        """Write what is left."""
        ...


class TensorBoard:
    """Event files in the round's folder: `tensorboard --logdir` on a run's output shows its rounds."""

    def __init__(self, recipe: Followed, folder: Path, start: int) -> None:
        from torch.utils.tensorboard.writer import SummaryWriter

        self._writer = SummaryWriter(folder / "tensorboard", purge_step=start + 1)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """A scalar each."""
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def picture(self, step: int, sheet: Image.Image) -> None:
        """An image."""
        self._writer.add_image(PICTURES, np.asarray(sheet), step, dataformats="HWC")

    def close(self) -> None:
        """Flush."""
        self._writer.close()


class WandB:
    """A run of Weights & Biases for each round, in one group. The environment says where, and with which key."""

    def __init__(self, recipe: Followed, folder: Path, start: int) -> None:
        import wandb

        self._image = wandb.Image
        self._run = wandb.init(
            project=PROJECT,
            group=Path(recipe.output).name,
            name=folder.name,
            id=hashlib.sha256(str(folder).encode()).hexdigest()[:16],
            resume="allow",
            config=dict(recipe.resolved()),
            dir=folder,
        )

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """One row."""
        self._run.log(dict(values), step=step)

    def picture(self, step: int, sheet: Image.Image) -> None:
        """An image in that row."""
        self._run.log({PICTURES: self._image(sheet)}, step=step)

    def close(self) -> None:
        """Upload what is left."""
        self._run.finish()


class MLflow:
    """A run of MLflow for each round. The environment says which server."""

    def __init__(self, recipe: Followed, folder: Path, start: int) -> None:
        import mlflow

        self._mlflow, id_file = mlflow, folder / "mlflow-run"
        mlflow.set_experiment(PROJECT)
        name = f"{Path(recipe.output).name}/{folder.name}"
        run = mlflow.start_run(id_file.read_text()) if id_file.exists() else mlflow.start_run(run_name=name)
        if not id_file.exists():
            write_whole(id_file, run.info.run_id)
            mlflow.log_dict(dict(recipe.resolved()), "recipe.json")

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """A metric each."""
        self._mlflow.log_metrics(dict(values), step=step)

    def picture(self, step: int, sheet: Image.Image) -> None:
        """An image."""
        self._mlflow.log_image(sheet, key=PICTURES, step=step)

    def close(self) -> None:
        """End the run."""
        self._mlflow.end_run()


TRACKERS: Mapping[str, Callable[[Followed, Path, int], Tracker]] = {
    "tensorboard": TensorBoard,
    "wandb": WandB,
    "mlflow": MLflow,
}


class Trackers:
    """All that a recipe names, as one. Nothing is sent before `open`, which rank 0 alone calls."""

    def __init__(self, recipe: Followed, folder: Path) -> None:
        self._recipe, self._folder = recipe, folder
        self._open: Sequence[Tracker] = ()

    def open(self, start: int) -> None:
        """Begin, or go on from a step."""
        self._open = [TRACKERS[name](self._recipe, self._folder, start) for name in self._recipe.trackers]

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """What is a number of these; the rest is in the round's metrics.jsonl."""
        finite = {name: value for name, value in values.items() if math.isfinite(value)}
        for tracker in self._open:
            tracker.log(step, finite)

    def picture(self, step: int, sheet: Image.Image) -> None:
        """What the student makes by now."""
        for tracker in self._open:
            tracker.picture(step, sheet)

    def close(self) -> None:
        """At the end of the round."""
        for tracker in self._open:
            tracker.close()


def check_trackers(recipe: Followed) -> None:
    """Refuse trackers that are not installed here."""
    for name in recipe.trackers:
        if importlib.util.find_spec(name) is None:
            raise BadInput(f"trackers: {name} is not installed; pip install {name}, or leave it out")
