"""Chooses the scheduler that a student is exported with: one of diffusers', or one whose code travels along."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, cast

import torch

from fewstep.methods.base import Sampler
from fewstep.orchestrator.errors import BadInput
from fewstep.orchestrator.recipe.recipe import Recipe
from fewstep.orchestrator.sampling.schedules import (
    is_flow_matching,
    num_train_timesteps,
    number,
    prediction_of,
    schedule_of,
)
from fewstep.orchestrator.sampling.solvers import Scheduler
from fewstep.orchestrator.students.student import until
from fewstep.orchestrator.teachers.schedulers import scheduler_class

if TYPE_CHECKING:
    from diffusers import ConfigMixin

    from fewstep.orchestrator.students.round_result import StudentSpec
    from fewstep.orchestrator.teachers.teacher import Teacher


@dataclass(frozen=True)
class SchedulerTarget:
    """A scheduler that can sample a kind of student, and for which students."""

    scheduler: str  # a class of diffusers', or one of ours
    schedules: tuple[str, ...]
    predictions: Mapping[str, str]  # ours -> diffusers'
    options: Mapping[str, object] = field(default_factory=dict)


_VP = {"epsilon": "epsilon", "sample": "sample", "v_prediction": "v_prediction"}
_FLOW = {"flow": "flow_prediction"}
_CLEAN_END = {"set_alpha_to_one": True, "clip_sample": False}
_TRAILING = {"timestep_spacing": "trailing", **_CLEAN_END}
TARGETS: dict[str, SchedulerTarget] = {
    "renoising": SchedulerTarget("LCMScheduler", ("",), _VP, _CLEAN_END),
    "ddim": SchedulerTarget("DDIMScheduler", ("",), _VP, _TRAILING),
    "overshooting": SchedulerTarget("OvershootingScheduler", ("",), _VP, _TRAILING),
    "euler": SchedulerTarget("EvenFlowScheduler", ("flow",), _FLOW),
    # It ends on time 0, not on clean data: that time's noise stays in, 3 % of a picture of Stable Diffusion's.
    "strategic": SchedulerTarget("TCDScheduler", ("",), _VP, _CLEAN_END),
}

# For teachers on straight paths: schedulers whose steps are even by themselves.
FLOW_TARGETS: dict[str, SchedulerTarget] = {
    "renoising": SchedulerTarget("EvenFlowScheduler", ("",), _FLOW, {"stochastic_sampling": True}),
    "ddim": SchedulerTarget("FlowMapEulerDiscreteScheduler", ("",), _FLOW),
    "euler": SchedulerTarget("FlowMapEulerDiscreteScheduler", ("", "flow"), _FLOW),
}

# For those of them whose pipelines say themselves where even steps start.
TOLD_FLOW_TARGETS: dict[str, SchedulerTarget] = {
    "renoising": SchedulerTarget("FlowMatchLCMScheduler", ("",), _FLOW),
    "ddim": SchedulerTarget("FlowMatchEulerDiscreteScheduler", ("",), _FLOW),
    "euler": SchedulerTarget("FlowMatchEulerDiscreteScheduler", ("", "flow"), _FLOW),
}


def scheduler_for(
    sampler: Sampler, schedule: str, prediction: str, config: Mapping[str, object], *, is_told_times: bool = False
) -> Scheduler:
    """The scheduler to export with, from the teacher's configuration. Raises BadInput where none fits.

    `is_told_times` says that the pipeline names the times of its steps to a flow-matching scheduler.
    """
    is_flow = is_flow_matching(config)
    flow_targets = TOLD_FLOW_TARGETS if is_told_times else FLOW_TARGETS
    targets = flow_targets if is_flow else TARGETS
    if sampler.kind not in targets:
        raise BadInput(f"method: diffusers has no scheduler for {sampler.kind} sampling of a flow-matching teacher")
    target = targets[sampler.kind]
    if schedule not in target.schedules or prediction not in target.predictions:
        raise BadInput(
            f"method: {target.scheduler} cannot sample a student with prediction {prediction!r} and schedule "
            f"{schedule or 'of the teacher'!r}; it takes {' or '.join(target.predictions)}"
        )
    scheduler = cast("type[ConfigMixin]", scheduler_class(target.scheduler))
    if is_flow or schedule == "flow":
        # Of the teacher's configuration the shift alone: what else a pipeline reads there would move the times.
        shift = number(config, "shift") if is_flow else 1.0
        return cast(Scheduler, scheduler.from_config({"shift": shift, **target.options}))
    zero_snr = bool(config.get("rescale_betas_zero_snr", False))
    if prediction == "epsilon" and zero_snr:
        raise BadInput(
            "method: an epsilon student cannot start from pure noise (zero terminal SNR), where its answer says "
            "nothing of the picture; distill a v_prediction or sample teacher, or let the student predict v"
        )
    options = {"prediction_type": target.predictions[prediction], "rescale_betas_zero_snr": zero_snr, **target.options}
    if sampler.kind in ("renoising", "strategic"):
        _require_last_time(sampler.grid, config)
        options["original_inference_steps"] = sampler.grid
    return cast(Scheduler, scheduler.from_config(dict(config), **options))


def check_scheduler(recipe: Recipe, teacher: Teacher, facts: StudentSpec) -> Scheduler:
    """The scheduler that the recipe's student will be exported with. Raises BadInput where there is none."""
    config, method = teacher.scheduler, recipe.method.build()
    prediction, is_told_times = facts.prediction or prediction_of(config), teacher.family.tells_times
    if facts.start_time:
        config = _until(config, facts.start_time)
    scheduler = scheduler_for(method.sampler(), facts.schedule, prediction, config, is_told_times=is_told_times)
    if type(scheduler).__name__ == "DDIMScheduler":
        _require_clean_end(method.student_steps, num_train_timesteps(config))
    return scheduler


def _until(config: Mapping[str, object], start_time: int) -> Mapping[str, object]:
    """A configuration that knows no times after one, so that an ordinary call starts there."""
    schedule = until(schedule_of(config), start_time)
    ratios = schedule.alphas_cumprod / torch.cat([torch.ones(1), schedule.alphas_cumprod[:-1]])
    table = {"trained_betas": (1 - ratios).tolist(), "num_train_timesteps": start_time + 1}
    return {**config, **table, "rescale_betas_zero_snr": False}


def _require_last_time(grid: int, config: Mapping[str, object]) -> None:
    """These schedulers count up from clean data in whole steps, and reach the last time only if it divides."""
    times = num_train_timesteps(config)
    if times % grid:
        raise BadInput(
            f"method.grid: {grid} does not divide the teacher's {times} times, so that sampling would start "
            "after pure noise; choose a divisor"
        )


def _require_clean_end(steps: int, times: int) -> None:
    """DDIM's last step goes back by whole times, from the trailing grid's last one, which is rounded."""
    if round(times / steps) != times // steps:
        raise BadInput(
            f"method.student_steps: {steps} steps through {times} times would end with noise left in; "
            f"choose a divisor of {times}"
        )
