"""From a trained network to an ordinary diffusers pipeline, with the scheduler that its method is sampled with."""

from __future__ import annotations

import json
import shutil
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

import diffusers
import ray
import torch
from diffusers import StableDiffusionPipeline
from ray.exceptions import RayTaskError
from safetensors.torch import load_file
from torch import Tensor

from methods.base import Sampler
from orchestrator.cluster import bundle, connect, require
from orchestrator.errors import BadInput
from orchestrator.judge import Call
from orchestrator.recipe import Recipe
from orchestrator.solvers import Scheduler
from orchestrator.teacher import Teacher


@dataclass(frozen=True)
class StudentFacts:
    """What a round's weights mean; "" is the teacher's own."""

    guidance_input: bool
    prediction: str
    schedule: str
    lora_rank: int


@dataclass(frozen=True)
class Target:
    """A scheduler that can sample a kind of student, and for which students."""

    scheduler: str  # diffusers class
    schedules: tuple[str, ...]
    predictions: Mapping[str, str]  # ours -> diffusers'
    options: Mapping[str, object] = field(default_factory=dict)


_VP = {"epsilon": "epsilon", "sample": "sample", "v_prediction": "v_prediction"}
_CLEAN_END = {"set_alpha_to_one": True, "clip_sample": False}
TARGETS: dict[str, Target] = {
    "renoising": Target("LCMScheduler", ("", "zero_snr"), _VP, _CLEAN_END),
    "ddim": Target("DDIMScheduler", ("", "zero_snr"), _VP, {"timestep_spacing": "trailing", **_CLEAN_END}),
    # Euler's method on straight paths. diffusers' FlowMatchEulerDiscreteScheduler does not run in
    # StableDiffusionPipeline; first-order DPM-Solver++ on flow sigmas makes the same steps, and does.
    "euler": Target(
        "DPMSolverMultistepScheduler",
        ("flow",),
        {"flow": "flow_prediction"},
        {
            "algorithm_type": "dpmsolver++",
            "solver_order": 1,
            "use_flow_sigmas": True,
            "flow_shift": 1.0,
            "final_sigmas_type": "zero",
            "rescale_betas_zero_snr": False,
        },
    ),
    "strategic": Target("TCDScheduler", ("", "zero_snr"), _VP, _CLEAN_END),
}


def scheduler_for(sampler: Sampler, schedule: str, prediction: str, config: Mapping[str, object]) -> Scheduler:
    """The scheduler to export with, from the teacher's configuration. Raises BadInput where none fits."""
    target = TARGETS[sampler.kind]
    if schedule not in target.schedules or prediction not in target.predictions:
        raise BadInput(
            f"method: {target.scheduler} cannot sample a student with prediction {prediction!r} and schedule "
            f"{schedule or 'of the teacher'!r}; it takes {' or '.join(target.predictions)}"
        )
    zero_snr = schedule == "zero_snr" or bool(config.get("rescale_betas_zero_snr", False))
    if prediction == "epsilon" and zero_snr:
        raise BadInput(
            "method: an epsilon student cannot start from pure noise (zero terminal SNR), where its answer says "
            "nothing of the picture; distill a v_prediction or sample teacher, or let the student predict v"
        )
    options = {"prediction_type": target.predictions[prediction], "rescale_betas_zero_snr": zero_snr, **target.options}
    if sampler.kind in ("renoising", "strategic"):
        _require_last_time(sampler.grid, config)
        options["original_inference_steps"] = sampler.grid
    return getattr(diffusers, target.scheduler).from_config(dict(config), **options)


def _require_last_time(grid: int, config: Mapping[str, object]) -> None:
    """These schedulers count up from clean data in whole steps, and reach the last time only if it divides."""
    times = int(str(config["num_train_timesteps"]))
    if times % grid:
        raise BadInput(
            f"method.grid: {grid} does not divide the teacher's {times} times, so that sampling would start "
            "after pure noise; choose a divisor"
        )


def call_of(recipe: Recipe) -> Call:
    """What the student's pipeline is called with besides prompt, steps and guidance scale."""
    sampler = recipe.method.build().sampler()
    negative = recipe.trajectories.negative_prompt if sampler.guidance == "composed" else ""
    return Call(eta=sampler.gamma if sampler.kind == "strategic" else 0.0, negative_prompt=negative)


def guidance_of(recipe: Recipe) -> float:
    """The guidance scale that the student is sampled with; 1 where guidance is already inside."""
    return 1.0 if recipe.method.build().sampler().guidance == "none" else recipe.evaluation.guidance_scale


def check(recipe: Recipe, config: Mapping[str, object], facts: StudentFacts) -> Scheduler:
    """The scheduler that the recipe's student will be exported with. Raises BadInput where there is none."""
    prediction = facts.prediction or str(config["prediction_type"])
    return scheduler_for(recipe.method.build().sampler(), facts.schedule, prediction, config)


def build(recipe: Recipe, result: Path) -> StableDiffusionPipeline:
    """The teacher's pipeline with the student in its place; `result` holds weights.safetensors and student.json."""
    teacher = Teacher(recipe.teacher)
    facts = StudentFacts(**json.loads((result / "student.json").read_text()))
    network = teacher.network.with_guidance_input() if facts.guidance_input else teacher.network
    network.load_state_dict(load_file(result / "weights.safetensors"))
    pipeline = teacher.pipeline
    pipeline.scheduler = check(recipe, teacher.card.scheduler, facts)
    pipeline.unet = network.unet
    pipeline.register_modules(unet=network.unet)
    return pipeline


def write(recipe: Recipe, result: Path, out: Path) -> None:
    """Build, save, and sample from what was saved; a crash leaves what was there before."""
    pipeline = build(recipe, result)
    fresh = out.with_name(f".{out.name}-{uuid.uuid4().hex[:8]}")
    pipeline.save_pretrained(fresh, safe_serialization=True)
    loaded = StableDiffusionPipeline.from_pretrained(fresh, torch_dtype=pipeline.dtype, local_files_only=True)
    loaded.set_progress_bar_config(disable=True)
    image = loaded("", num_inference_steps=1, guidance_scale=guidance_of(recipe), output_type="pt", return_dict=False)[
        0
    ]
    if not bool(torch.isfinite(cast(Tensor, image)).all()):
        raise ValueError(f"the student of {result} makes pictures that are not finite; it was not exported to {out}")
    if out.exists():
        old = out.with_name(f".{out.name}-{uuid.uuid4().hex[:8]}")
        out.rename(old)
        fresh.rename(out)
        shutil.rmtree(old)
    else:
        fresh.rename(out)


def export(recipe: Recipe, result: Path, out: Path) -> None:
    """Write the student as a diffusers folder, on the cluster with one worker's resources."""
    connect(recipe.resources)
    require(recipe.resources, [bundle(recipe.resources)], "resources.cpus_per_worker")
    remote = ray.remote(write).options(
        num_cpus=recipe.resources.cpus_per_worker, num_gpus=recipe.resources.gpus_per_worker
    )
    try:
        ray.get(remote.remote(recipe, result, out))
    except RayTaskError as error:
        if isinstance(error.cause, BadInput):
            raise error.cause from None
        raise
