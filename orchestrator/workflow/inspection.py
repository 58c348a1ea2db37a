"""Describes a data set, in words and in a picture."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from fewstep.orchestrator.compute.cluster import connect
from fewstep.orchestrator.compute.tasks import run_task
from fewstep.orchestrator.datasets.captioned_plans import ImagePlan, ImportPlan
from fewstep.orchestrator.datasets.commit_log import open_commit_log
from fewstep.orchestrator.datasets.dataset import Dataset
from fewstep.orchestrator.datasets.plan import DatasetPlan, Plan
from fewstep.orchestrator.observability.image_grid import Pixels, grid
from fewstep.orchestrator.recipe.resources import Resources
from fewstep.orchestrator.recipe.section import Json
from fewstep.orchestrator.recipe.teacher import TeacherSpec
from fewstep.orchestrator.teachers.teacher import Teacher

POINTS = 8  # of a path, at most


def describe_dataset(path: str) -> Json:
    """What it is, how it was made, and how big it is."""
    commit_log = open_commit_log(path)
    plan, manifest = commit_log.plan, commit_log.newest()
    commits = (manifest.conditions, *manifest.shards)
    return {
        "path": commit_log.url,
        "plan_hash": plan.hash,
        "teacher": commit_log.teacher.origin,
        "teacher_revision": plan.teacher["revision"],
        **_describe(plan),
        "seed": plan.seed,
        "made_on": sorted({f"{c.compute['device']}, torch {c.compute['torch']}" for c in manifest.shards}),
        "versions": commit_log.versions(),
        "planned": manifest.samples,
        "rows": manifest.rows,
        "shards": len(manifest.shards),
        "bytes": sum(commit.file.bytes for commit in commits),
        "content_hash": manifest.content_hash,
    }


def _describe(plan: DatasetPlan) -> Json:
    if isinstance(plan, ImagePlan):
        return _describe_images(plan)
    if isinstance(plan, ImportPlan):
        return _describe_imported(plan)
    assert isinstance(plan, Plan)
    return _describe_paths(plan)


def _describe_imported(plan: ImportPlan) -> Json:
    return {
        "imported_from": plan.imported_from,
        "imported_sha256": plan.imported_sha256,
        "captions": plan.num_captions,
        **({"guidance_scale": plan.guidance_scale} if plan.has_noise else {}),
        "tensor": f"{plan.dtype} {[2, *plan.latent_shape] if plan.has_noise else list(plan.latent_shape)}",
    }


def _describe_paths(plan: Plan) -> Json:
    low, high = plan.guidance_scale
    return {
        "solver": plan.solver,
        "num_inference_steps": plan.num_inference_steps,
        "guidance_scale": list(plan.guidance_scales) or ([low, high] if low < high else low),
        "prompts": plan.num_prompts,
        "saved_points": list(plan.saved_points),
        "tensor": f"{plan.dtype} " + " or ".join(str([len(plan.saved_points), *shape]) for shape in plan.latent_shapes),
    }


def _describe_images(plan: ImagePlan) -> Json:
    return {
        "images": plan.images,
        "images_sha256": plan.images_sha256,
        "captions": plan.num_captions,
        "tensor": f"{plan.dtype} {list(plan.latent_shape)}",
    }


def draw_dataset(path: str, samples: int, file: Path) -> None:
    """The first samples, decoded along their paths, noise above, samples below; or the first images."""
    commit_log = open_commit_log(path)
    dataset = Dataset.open(path, commit_log.newest().version)
    rows, prompts = dataset.row_groups().read(0), commit_log.prompts()
    if "x0" in rows:
        labels, paths = ["image"], rows["x0"][:samples, None]
    else:
        times = dataset.times()
        points = sorted({round(i) for i in np.linspace(0, len(times) - 1, min(POINTS, len(times)))})
        labels = ["sample" if time < 0 else f"t = {time:g}" for time in times[points].tolist()]
        paths = rows["path"][:samples, points]
    captions = [prompts[dataset.plan.condition_prompt(c)] for c in rows["condition_id"][:samples].tolist()]
    connect(Resources())
    pixels = run_task(_decoded, Resources(), commit_log.teacher, paths.float())
    grid(list(zip(labels, pixels, strict=True)), captions, file)


def _decoded(teacher: TeacherSpec, paths: torch.Tensor) -> list[Pixels]:
    """The pictures of each point, [samples, height, width, 3]."""
    loaded = Teacher(teacher)
    images = [loaded.decode(paths[:, point]) for point in range(paths.shape[1])]
    return [(image.permute(0, 2, 3, 1) * 255).round().byte().numpy() for image in images]
