"""Chooses the scheduler that a student is exported with: one of diffusers', or one whose code travels along."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, cast

import torch

from fewstep.methods.base import Sampler
from fewstep.orchestrator.errors import BadInput
from fewstep.orchestrator.recipe.recipe import Recipe
from fewstep.orchestrator.sampling.schedules import is_flow_matching, num_train_timesteps, prediction_of, schedule_of
from fewstep.orchestrator.sampling.solvers import SOLVERS, Scheduler
from fewstep.orchestrator.students.student import until

if TYPE_CHECKING:
    from diffusers import ConfigMixin

    from fewstep.orchestrator.students.round_result import StudentSpec


@dataclass(frozen=True)
class SchedulerTarget:
    """A scheduler that can sample a kind of student, and for which students."""

    scheduler: str  # diffusers class, or one of OURS
    schedules: tuple[str, ...]
    predictions: Mapping[str, str]  # ours -> diffusers'
    options: Mapping[str, object] = field(default_factory=dict)


_VP = {"epsilon": "epsilon", "sample": "sample", "v_prediction": "v_prediction"}
_CLEAN_END = {"set_alpha_to_one": True, "clip_sample": False}
_TRAILING = {"timestep_spacing": "trailing", **_CLEAN_END}
OURS = frozenset({"OvershootingScheduler"})  # of pipelines/: their code travels in the exported folder
TARGETS: dict[str, SchedulerTarget] = {
    "renoising": SchedulerTarget("LCMScheduler", ("",), _VP, _CLEAN_END),
    "ddim": SchedulerTarget("DDIMScheduler", ("",), _VP, _TRAILING),
    "overshooting": SchedulerTarget("OvershootingScheduler", ("",), _VP, _TRAILING),
    "euler": SchedulerTarget(
        SOLVERS["flow-euler"].scheduler, ("flow",), {"flow": "flow_prediction"}, SOLVERS["flow-euler"].options
    ),
    # It ends on time 0, not on clean data: that time's noise stays in, 3 % of a picture of Stable Diffusion's.
    "strategic": SchedulerTarget("TCDScheduler", ("",), _VP, _CLEAN_END),
}

# For teachers on straight paths, whose pipelines are given the times of their steps.
FLOW_TARGETS: dict[str, SchedulerTarget] = {
    "renoising": SchedulerTarget("FlowMatchLCMScheduler", ("",), {"flow": "flow_prediction"}),
    "ddim": SchedulerTarget("FlowMatchEulerDiscreteScheduler", ("",), {"flow": "flow_prediction"}),
    "euler": SchedulerTarget("FlowMatchEulerDiscreteScheduler", ("", "flow"), {"flow": "flow_prediction"}),
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
        return cast(Scheduler, _scheduler_class(target.scheduler).from_config(dict(config)))
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
    return cast(Scheduler, _scheduler_class(target.scheduler).from_config(dict(config), **options))


def check_scheduler(recipe: Recipe, config: Mapping[str, object], facts: StudentSpec) -> Scheduler:
    """The scheduler that the recipe's student will be exported with. Raises BadInput where there is none."""
    prediction, method = facts.prediction or prediction_of(config), recipe.method.build()
    if facts.start_time:
        config = _until(config, facts.start_time)
    scheduler = scheduler_for(method.sampler(), facts.schedule, prediction, config)
    if type(scheduler).__name__ == "DDIMScheduler":
        _require_clean_end(method.student_steps, num_train_timesteps(config))
    return scheduler


def _until(config: Mapping[str, object], start_time: int) -> Mapping[str, object]:
    """A configuration that knows no times after one, so that an ordinary call starts there."""
    schedule = until(schedule_of(config), start_time)
    ratios = schedule.alphas_cumprod / torch.cat([torch.ones(1), schedule.alphas_cumprod[:-1]])
    table = {"trained_betas": (1 - ratios).tolist(), "num_train_timesteps": start_time + 1}
    return {**config, **table, "rescale_betas_zero_snr": False}


def _scheduler_class(name: str) -> type[ConfigMixin]:
    """One of diffusers' schedulers, or of ours."""
    import diffusers

    from fewstep.orchestrator.pipelines.overshooting import OvershootingScheduler

    return OvershootingScheduler if name in OURS else getattr(diffusers, name)


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
