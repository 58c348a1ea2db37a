"""Turns stored rows into the columns that a source promises."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from fewstep.methods.batch import to_device_async
from fewstep.orchestrator.datasets.captioned_plans import ImportPlan
from fewstep.orchestrator.datasets.dataset import Dataset
from fewstep.orchestrator.datasets.shard_file import Columns
from fewstep.orchestrator.datasets.sources import DatasetKind


def clean_latents(stored: Columns) -> Tensor:
    """The clean latents [rows, *latent] of stored rows, in float32, whichever data set they are from."""
    return (stored["path"][:, -1] if "path" in stored else stored["x0"]).float()


def columns_of(kind: str, dataset_kind: DatasetKind, dataset: Dataset) -> Callable[[Columns], Columns]:
    """How stored rows become the columns that a source of this kind promises."""
    if dataset_kind == "images" or (isinstance(dataset.plan, ImportPlan) and not dataset.plan.has_noise):
        return lambda stored: _of_image(kind, stored)
    times = dataset.times()
    return lambda stored: _of_path(kind, times, stored)


def _of_image(kind: str, stored: Columns) -> Columns:
    x0 = stored["x0"].float()
    chosen = {"data": {"x0": x0}, "prompts": {"blank": torch.zeros_like(x0)}}[kind]
    return chosen | {"sample_id": stored["sample_id"]}


def _of_path(kind: str, times: Tensor, stored: Columns) -> Columns:
    path = stored["path"].float()
    ends = {"noise": path[:, 0], "x0": path[:, -1]}
    whole = {"path": path, "times": to_device_async(times, path.device).expand(len(path), -1)}
    chosen = {
        "path": ends | whole,
        "pairs": ends,
        "data": {"x0": path[:, -1]},  # the teacher's own samples stand in for real data
        "prompts": {"blank": torch.zeros_like(path[:, 0])},
    }[kind]
    return chosen | {"guidance_scale": stored["guidance_scale"].float(), "sample_id": stored["sample_id"]}
