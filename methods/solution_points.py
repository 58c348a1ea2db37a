"""Find neighboring points of the guided ODE, which consistency training makes agree."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

from fewstep.methods.base import Nets
from fewstep.methods.batch import Batch
from fewstep.methods.diffusion import Cond, diffuse, guided, step
from fewstep.methods.lazy_torch import torch
from fewstep.methods.schedules import DiscreteVP, Schedule
from fewstep.methods.search_space import Choice
from fewstep.methods.validation import require

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor

GUIDANCE_RANGES = Choice(((1.0, 4.0), (1.0, 8.0), (3.0, 15.0)))  # that a search may draw w from


class SolutionPoints(NamedTuple):
    """Two points of one solution of the guided ODE, s < t."""

    x_t: Float[Tensor, "b *latent"]
    t: Float[Tensor, "b"]
    x_s: Float[Tensor, "b *latent"]
    s: Float[Tensor, "b"]
    cond: Cond
    guidance_scale: Float[Tensor, "b"]


def online_points(
    nets: Nets, batch: Batch, *, grid: int, skip: int, guidance_scale: tuple[float, float]
) -> SolutionPoints:
    """Noised data, and one guided DDIM step of the teacher from there (Algorithm 1, arXiv:2310.04378)."""
    teacher, rows, draw = nets["teacher"], batch["data"], batch.draw
    schedule = teacher.schedule
    u = draw.integers(1, grid + 1) / grid
    t, s = schedule.at(u), schedule.at((u - skip / timesteps_of(schedule)).clamp_min(0))  # s ends on clean data
    low, high = guidance_scale
    w = draw.uniform(low, high)
    x_t = diffuse(schedule, rows.x0, draw.normal(rows.x0), t)
    x_s = step(schedule, guided(teacher, x_t, t, rows.cond, rows.uncond, low if low == high else w), s)
    return SolutionPoints(x_t, t, x_s, s, rows.cond, w)


def stored_points(nets: Nets, batch: Batch, *, skip: int | None = None, student_steps: int = 0) -> SolutionPoints:
    """Two points that the teacher passed when the row was generated: `skip` timesteps apart, or next to each other.

    With `student_steps`, x_t is one of those that so many steps of the student start from, or that a hop leads to.

    A departure from the paper, whose x_t is noised data: these states are the guided ODE's own, where the
    student is used at its first step, x_s carries no error of a long solver step, and no teacher is needed.
    """
    rows = batch["path"]
    last = rows.path.shape[1] - 1
    hop = points_in(skip, last, nets["student"].schedule) if skip else 1
    stride = math.gcd(last // student_steps, hop) if student_steps else 1
    i = batch.draw.integers(0, last // stride) * stride
    j = (i + hop).clamp_max(last)
    here = torch.arange(len(i), device=i.device)
    x_t, t, x_s, s = rows.path[here, i], rows.times[here, i], rows.path[here, j], rows.times[here, j]
    return SolutionPoints(x_t, t, x_s, s, rows.cond, rows.guidance_scale)


def timesteps_of(schedule: Schedule) -> int:
    """Count the timesteps from noise to data, evenly in `at`: 1000, where times are not counted."""
    return len(schedule.alphas_cumprod) if isinstance(schedule, DiscreteVP) else 1000


def points_in(skip: int, num_steps: int, schedule: Schedule) -> int:
    """How many steps of a stored path `skip` timesteps are. Raises ValueError where it is no whole number."""
    timesteps = timesteps_of(schedule)
    require(
        skip * num_steps % timesteps == 0,
        f"skip must be a multiple of the stored path's spacing, {timesteps}/{num_steps} timesteps, got {skip}",
    )
    return skip * num_steps // timesteps
