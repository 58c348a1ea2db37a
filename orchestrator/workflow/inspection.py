"""Looks into data sets: verify, clean, show. None of them loads a model in this process."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np

from fewstep.orchestrator.datasets.captioned_plans import ImagePlan, ImportPlan
from fewstep.orchestrator.datasets.commit_log import open_commit_log
from fewstep.orchestrator.datasets.plan import DatasetPlan, Plan
from fewstep.orchestrator.observability.console import print_facts, say
from fewstep.orchestrator.observability.durations import seconds_of
from fewstep.orchestrator.observability.image_grid import Pixels, grid
from fewstep.orchestrator.recipe.resources import Resources
from fewstep.orchestrator.recipe.section import Json

POINTS = 8  # of a path, at most


def verify(path: str) -> Json:
    """Every file of a data set against its hash."""
    result = open_commit_log(path).verify()
    for record in result.broken:
        say(f"{record.shard} {record.why}; mend it with `fewstep repair {path}`")
    if not result.broken:
        say(f"{result.shards} shards, {result.rows} rows, all as committed; content {result.content_hash}")
    return dataclasses.asdict(result)


def clean(path: str, older_than: str) -> Json:
    """What writers left behind."""
    removed = open_commit_log(path).clean(seconds_of(older_than, "--older-than"))
    say(f"removed {removed.files} files, {removed.bytes:,} bytes, all older than {older_than}")
    return dataclasses.asdict(removed)


def show(path: str, samples: int, out: str) -> Json:
    """What a data set is, and a picture of it."""
    facts = describe_dataset(path)
    print_facts(facts)
    draw_dataset(path, samples, Path(out))
    say(f"picture: {out}")
    return {**facts, "picture": out}


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
    from fewstep.orchestrator.compute.cluster import connect
    from fewstep.orchestrator.compute.tasks import run_task

    connect(Resources())
    rows, captions = run_task(_pictures, Resources(), open_commit_log(path).url, samples)
    grid(rows, captions, file)


def _pictures(url: str, samples: int) -> tuple[list[tuple[str, Pixels]], list[str]]:
    """A row of pictures [samples, height, width, 3] for each point, with its label; and their captions."""
    from fewstep.orchestrator.datasets.dataset import Dataset
    from fewstep.orchestrator.teachers.teacher import Teacher

    commit_log = open_commit_log(url)
    dataset = Dataset.open(url, commit_log.newest().version)
    rows, prompts = dataset.row_groups().read(0), commit_log.prompts()
    if "x0" in rows:
        labels, paths = ["image"], rows["x0"][:samples, None]
    else:
        times = dataset.times()
        points = sorted({round(i) for i in np.linspace(0, len(times) - 1, min(POINTS, len(times)))})
        labels = ["sample" if time < 0 else f"t = {time:g}" for time in times[points].tolist()]
        paths = rows["path"][:samples, points]
    teacher = Teacher(commit_log.teacher)
    images = [teacher.decode(paths[:, point].float()) for point in range(paths.shape[1])]
    pixels = [(image.permute(0, 2, 3, 1) * 255).round().byte().numpy() for image in images]
    captions = [prompts[dataset.plan.condition_prompt(c)] for c in rows["condition_id"][:samples].tolist()]
    return list(zip(labels, pixels, strict=True)), captions
