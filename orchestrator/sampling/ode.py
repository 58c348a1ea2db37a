"""Samples a teacher: its guided ODE, solved from noise to data."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import zip_longest

import torch
from torch import Tensor

from fewstep.methods.schedules import Schedule
from fewstep.orchestrator.sampling import analytic_dpm, runge_kutta
from fewstep.orchestrator.sampling.guidance import GuidedDenoiser
from fewstep.orchestrator.sampling.schedules import num_train_timesteps, number, schedule_of
from fewstep.orchestrator.sampling.solvers import ODE_SOLVERS, SOLVERS, Solver

OwnSolver = Callable[[GuidedDenoiser, Tensor, int, Mapping[str, object]], tuple[Tensor, Tensor]]


@torch.inference_mode()
def sample_path(
    solver: Solver, config: Mapping[str, object], denoiser: GuidedDenoiser, noise: Tensor, steps: int
) -> tuple[Tensor, Tensor]:
    """Solve the ODE from unit noise [b, *latent] in a number of steps.

    `config` is that of the teacher's own scheduler. Returns the states x_t [b, steps + 1, *latent], noise first,
    and the schedule's times of them [steps + 1]; the last is clean.
    """
    if solver.scheduler in OURS:
        states, times = OURS[solver.scheduler](denoiser, noise, steps, solver.options)
        return states, times.float().cpu()
    scheduler = solver.build(config, steps)
    timesteps = scheduler.timesteps
    state, states = noise, []
    if solver.is_scaled:
        state = noise / scheduler.scale_model_input(torch.ones_like(noise), timesteps[0])
    for t, t_next in zip_longest(timesteps, timesteps[1:]):
        x_t = scheduler.scale_model_input(state, t) if solver.is_scaled else state
        # PNDM repeats its first step, and so evaluates where that ends twice: the state there is provisional at first.
        if t_next is None or t != t_next:
            states.append(x_t)
        state = scheduler.step(denoiser.output(x_t, t.to(noise.device)), t, state).prev_sample
    return torch.stack([*states, state], 1), _times(denoiser.schedule, timesteps.unique_consecutive())


def path_times(solver: Solver, config: Mapping[str, object], steps: int) -> Tensor:
    """The times that `sample_path` returns [steps + 1], known without sampling."""
    schedule = schedule_of(config)
    if solver.scheduler in OURS:
        return _grid(solver.options)(schedule, steps).float()
    return _times(schedule, solver.build(config, steps).timesteps.unique_consecutive())


def unsupported_reason(name: str, steps: int, prediction: str, config: Mapping[str, object]) -> str:
    """Why a solver cannot sample a teacher in so many steps, and what to do; "" where it can.

    `prediction` is what the teacher's network answers with, `config` that of its scheduler.
    """
    solver, schedule = SOLVERS[name], schedule_of(config)
    times = num_train_timesteps(config)
    if prediction not in solver.predictions:
        others = ", ".join(other for other, entry in ODE_SOLVERS.items() if prediction in entry.predictions)
        return f"{name} cannot sample a {prediction} teacher; choose one of {others}"
    if solver.divides_by_alpha and schedule.alpha(schedule.at(torch.ones(1))).item() == 0:
        return f"{name} divides by alpha, which is 0 at this teacher's last time (zero terminal SNR); choose heun"
    if solver.needs_divisor and times % steps:
        return f"{name} takes a number of steps that divides the teacher's {times} times, not {steps}; or choose euler"
    if solver.scheduler not in OURS and len(solver.build(config, steps).timesteps) != solver.evaluations(steps):
        return f"diffusers' {solver.scheduler} gets {steps} steps wrong; choose another number"
    return ""


def _times(schedule: Schedule, timesteps: Tensor) -> Tensor:
    """The schedule's times of the timesteps that a network sees on the way, and that of clean data."""
    ends = schedule.at(torch.tensor([0.0, 1.0]))
    unit = schedule.network_time(ends[1:]) / ends[1:]  # both count from 0, evenly
    return torch.cat([timesteps.float().cpu() / unit, ends[:1]])


def _grid(options: Mapping[str, object]) -> Callable[[Schedule, int], Tensor]:
    return {"trailing": runge_kutta.trailing, "karras": runge_kutta.karras}[str(options.get("grid", "trailing"))]


def _heun(denoiser: GuidedDenoiser, noise: Tensor, steps: int, options: Mapping[str, object]) -> tuple[Tensor, Tensor]:
    times = _grid(options)(denoiser.schedule, steps).to(noise.device)
    return runge_kutta.heun(denoiser, noise, times), times


def _rk45(denoiser: GuidedDenoiser, noise: Tensor, steps: int, options: Mapping[str, object]) -> tuple[Tensor, Tensor]:
    times = _grid(options)(denoiser.schedule, steps).to(noise.device)
    return runge_kutta.rk45(denoiser, noise, times, number(options, "tolerance")), times


def _analytic_dpm(
    denoiser: GuidedDenoiser, noise: Tensor, steps: int, options: Mapping[str, object]
) -> tuple[Tensor, Tensor]:
    variances, generators = options["variances"], options["generators"]
    assert isinstance(variances, Sequence) and isinstance(generators, Sequence)
    return analytic_dpm.sample(denoiser, noise, steps, variances, generators)


OURS: dict[str, OwnSolver] = {"AnalyticDPM": _analytic_dpm, "Heun": _heun, "RK45": _rk45}
