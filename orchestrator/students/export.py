"""From a trained network to an ordinary diffusers pipeline, with the scheduler that its method is sampled with."""

from __future__ import annotations

import copy
import shutil
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

import diffusers

from methods.base import Sampler
from orchestrator.cluster import ask, connect
from orchestrator.errors import BadInput
from orchestrator.families import load_student
from orchestrator.family import Family
from orchestrator.judge import Call
from orchestrator.network import PipelineNetwork
from orchestrator.pipelines.overshooting import OvershootingScheduler
from orchestrator.recipe import Recipe
from orchestrator.results import StudentFacts, read_network
from orchestrator.solvers import SOLVERS, Scheduler
from orchestrator.teacher import Teacher, is_flow_matching, prediction_of


@dataclass(frozen=True)
class Target:
    """A scheduler that can sample a kind of student, and for which students."""

    scheduler: str  # diffusers class, or one of OURS
    schedules: tuple[str, ...]
    predictions: Mapping[str, str]  # ours -> diffusers'
    options: Mapping[str, object] = field(default_factory=dict)


_VP = {"epsilon": "epsilon", "sample": "sample", "v_prediction": "v_prediction"}
_CLEAN_END = {"set_alpha_to_one": True, "clip_sample": False}
_TRAILING = {"timestep_spacing": "trailing", **_CLEAN_END}
OURS = {"OvershootingScheduler": OvershootingScheduler}
TARGETS: dict[str, Target] = {
    "renoising": Target("LCMScheduler", ("", "zero_snr"), _VP, _CLEAN_END),
    "ddim": Target("DDIMScheduler", ("", "zero_snr"), _VP, _TRAILING),
    "overshooting": Target("OvershootingScheduler", ("", "zero_snr"), _VP, _TRAILING),
    "euler": Target(
        SOLVERS["flow-euler"].scheduler, ("flow",), {"flow": "flow_prediction"}, SOLVERS["flow-euler"].options
    ),
    # It ends on time 0, not on clean data: that time's noise stays in, 3 % of a picture of Stable Diffusion's.
    "strategic": Target("TCDScheduler", ("", "zero_snr"), _VP, _CLEAN_END),
}

# Of teachers on straight paths, whose pipelines are told the times of their steps.
FLOW_TARGETS: dict[str, Target] = {
    "renoising": Target("FlowMatchLCMScheduler", ("",), {"flow": "flow_prediction"}),
    "ddim": Target("FlowMatchEulerDiscreteScheduler", ("",), {"flow": "flow_prediction"}),
    "euler": Target("FlowMatchEulerDiscreteScheduler", ("", "flow"), {"flow": "flow_prediction"}),
}


def scheduler_for(sampler: Sampler, schedule: str, prediction: str, config: Mapping[str, object]) -> Scheduler:
    """The scheduler to export with, from the teacher's configuration. Raises BadInput where none fits."""
    is_flow = is_flow_matching(config)
    targets = FLOW_TARGETS if is_flow else TARGETS
    if sampler.kind not in targets:
        raise BadInput(f"method: diffusers has no scheduler for {sampler.kind} sampling of a flow-matching teacher")
    target = targets[sampler.kind]
    if schedule not in target.schedules or prediction not in target.predictions:
        raise BadInput(
            f"method: {target.scheduler} cannot sample a student with prediction {prediction!r} and schedule "
            f"{schedule or 'of the teacher'!r}; it takes {' or '.join(target.predictions)}"
        )
    if is_flow:
        return getattr(diffusers, target.scheduler).from_config(dict(config))
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
    scheduler = OURS.get(target.scheduler) or getattr(diffusers, target.scheduler)
    return cast(Scheduler, scheduler.from_config(dict(config), **options))


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


def brings_scheduler(recipe: Recipe) -> bool:
    """Does the student's folder hold the code of its scheduler, because diffusers has none like it?"""
    return TARGETS[recipe.method.build().sampler().kind].scheduler in OURS


def fixed_guidance(recipe: Recipe) -> float | None:
    """1 where guidance is already inside the student; None where it is chosen when sampling."""
    return 1.0 if recipe.method.build().sampler().guidance == "none" else None


def check(recipe: Recipe, config: Mapping[str, object], facts: StudentFacts) -> Scheduler:
    """The scheduler that the recipe's student will be exported with. Raises BadInput where there is none."""
    prediction, method = facts.prediction or prediction_of(config), recipe.method.build()
    scheduler = scheduler_for(method.sampler(), facts.schedule, prediction, config)
    if isinstance(scheduler, diffusers.DDIMScheduler):
        _require_clean_end(method.student_steps, int(str(config["num_train_timesteps"])))
    return scheduler


def _require_clean_end(steps: int, times: int) -> None:
    """DDIM's last step goes back by whole times, from the trailing grid's last one, which is rounded."""
    if round(times / steps) != times // steps:
        raise BadInput(
            f"method.student_steps: {steps} steps through {times} times would end with noise left in; "
            f"choose a divisor of {times}"
        )


def build(recipe: Recipe, result: Path) -> Family:
    """The teacher's pipeline with a finished round's student in its place."""
    teacher = Teacher(recipe.teacher)
    return dress(recipe, teacher, read_network(result, teacher), StudentFacts.read(result))


def dress(recipe: Recipe, teacher: Teacher, network: PipelineNetwork, facts: StudentFacts) -> Family:
    """A student in a pipeline that shares all else with the teacher's, under the scheduler that it is exported with."""
    pipeline = copy.copy(teacher.pipeline)
    scheduler = check(recipe, teacher.scheduler, facts)
    pipeline.register_modules(**{network.component: network.model, "scheduler": scheduler})
    return type(teacher.family)(pipeline, teacher.spec.sizes)


def write(recipe: Recipe, result: Path, out: Path) -> None:
    """Build, save, and sample from what was saved; a crash leaves what was there before."""
    family = build(recipe, result)
    fresh = out.with_name(f".{out.name}-{uuid.uuid4().hex[:8]}")
    if StudentFacts.read(result).lora.rank:
        save_adapters(family, fresh / "lora", merge=recipe.export.merged)
    if recipe.export.merged:
        family.pipeline.save_pretrained(fresh, safe_serialization=True)
    else:
        family.pipeline.scheduler.save_pretrained(fresh / "scheduler")
    loaded = load_student(recipe.teacher, fresh)
    guidance_scale = fixed_guidance(recipe) or recipe.evaluation.guidance_scale
    image = loaded.pipeline(**loaded.call([""], "", 1, guidance_scale), output_type="pt").images
    if not bool(image.isfinite().all()):
        raise ValueError(f"the student of {result} makes pictures that are not finite; it was not exported to {out}")
    if out.exists():
        old = out.with_name(f".{out.name}-{uuid.uuid4().hex[:8]}")
        out.rename(old)
        fresh.rename(out)
        shutil.rmtree(old)
    else:
        fresh.rename(out)


def save_adapters(family: Family, folder: Path, *, merge: bool) -> None:
    """Write the adapters where the teacher's pipeline can load them, and add them to the pipeline's own weights."""
    if not family.network.guidance_modules:  # of which stock pipelines know nothing
        family.save_lora(folder)
    if merge:
        family.network.merge_lora()


def export(recipe: Recipe, result: Path, out: Path) -> None:
    """Write the student as a diffusers folder, on the cluster with one worker's resources."""
    connect(recipe.resources)
    ask(write, recipe.resources, recipe, result, out)
