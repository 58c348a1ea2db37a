"""Solves a teacher's ODE by Runge-Kutta methods: Heun's on a grid, and Dormand and Prince's to a tolerance.

Both work in the angle whose tangent is sigma / alpha, in which the ODE is dz/dangle = v for
z = x / sqrt(alpha^2 + sigma^2). Nothing is infinite there, not even where alpha is 0.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from torch import Tensor

from fewstep.methods.diffusion import coefficients, expand
from fewstep.methods.schedules import EDM, DiscreteVP, Schedule
from fewstep.orchestrator.sampling.guidance import GuidedDenoiser

# Dormand and Prince, A family of embedded Runge-Kutta formulae, 1980, table 2: where slopes are taken, the slopes
# that lead there, and the difference between fifth and fourth order. The last slope is the next step's first.
NODES = (1 / 5, 3 / 10, 4 / 5, 8 / 9, 1.0, 1.0)
STAGES = (
    (1 / 5,),
    (3 / 40, 9 / 40),
    (44 / 45, -56 / 15, 32 / 9),
    (19372 / 6561, -25360 / 2187, 64448 / 6561, -212 / 729),
    (9017 / 3168, -355 / 33, 46732 / 5247, 49 / 176, -5103 / 18656),
    (35 / 384, 0.0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84),
)
ERROR = (71 / 57600, 0.0, -71 / 16695, 71 / 1920, -17253 / 339200, 22 / 525, -1 / 40)
FIRST_STEP = 1 / 20  # of the whole way; a bad guess costs one step
SAFETY, SHRINK, GROW = 0.9, 0.2, 5.0

Slope = Callable[[Tensor, Tensor, Tensor], Tensor]  # of states [b, *x] at s [b]; last, their numbers [b] in the batch


def trailing(schedule: Schedule, steps: int) -> Tensor:
    """Times that fall evenly from the last to clean data, [steps + 1]."""
    return schedule.at(torch.arange(steps, -1, -1, dtype=torch.float64) / steps)


def karras(schedule: Schedule, steps: int) -> Tensor:
    """Times that lie closer together the cleaner they are (arXiv:2206.00364, Eq. 5), [steps + 1].

    Where the last is nothing but noise, that paper's sigma_max of 80 stands for it.
    """
    last, clean = schedule.at(torch.tensor([1.0, 0.0], dtype=torch.float64))
    ends = torch.stack([last, _cleanest(schedule)])
    high, low = (schedule.sigma(ends) / schedule.alpha(ends)).clamp_max(EDM.sigma_max).tolist()
    ratios = EDM(low, high).at(torch.linspace(1, 0, steps, dtype=torch.float64))
    return torch.cat([last[None], schedule.time_of(ratios[1:]).double(), clean[None]])


def _cleanest(schedule: Schedule) -> Tensor:
    """The time nearest to clean data that networks are trained on, [] in float64."""
    first = 0.0 if isinstance(schedule, DiscreteVP) else schedule.at(torch.tensor(1e-3)).item()
    return torch.tensor(first, dtype=torch.float64)


def heun(denoiser: GuidedDenoiser, noise: Tensor, times: Tensor) -> Tensor:
    """The states [b, times, *latent] by Heun's method; the step to clean data is Euler's."""
    angles, rows = _angles(denoiser.schedule, times), torch.arange(len(noise), device=noise.device)
    z, states = noise, [noise]
    for (t, s), h in zip(pairwise(times[:-1].float()), angles.diff().float(), strict=False):
        slope = _velocity(denoiser, z, t.expand(len(z)), rows)
        z = z + h / 2 * (slope + _velocity(denoiser, z + h * slope, s.expand(len(z)), rows))
        states.append(z)
    return _finished(denoiser, torch.stack(states, 1), times[:-1])


def rk45(denoiser: GuidedDenoiser, noise: Tensor, times: Tensor, tolerance: float) -> Tensor:
    """The states [b, times, *latent] by Dormand and Prince's method, which stops at every time.

    The ODE ends where networks' training does; the rest of the way to clean data is one step of Euler's.
    """
    schedule = denoiser.schedule
    noisy = torch.cat([times[:-1], _cleanest(schedule).to(times)[None]])

    def slope(z: Tensor, angle: Tensor, rows: Tensor) -> Tensor:
        return _velocity(denoiser, z, schedule.time_of(angle.tan()).float(), rows)

    states = _finished(denoiser, integrate(slope, noise, _angles(schedule, noisy), tolerance), noisy)
    return torch.cat([states[:, :-2], states[:, -1:]], 1)


def _angles(schedule: Schedule, times: Tensor) -> Tensor:
    return torch.atan2(schedule.sigma(times).double(), schedule.alpha(times).double())


def _velocity(denoiser: GuidedDenoiser, z: Tensor, t: Tensor, rows: Tensor) -> Tensor:
    alpha, sigma = coefficients(denoiser.schedule, t, z)
    norm = torch.hypot(alpha, sigma)
    x0, eps = denoiser(norm * z, t, rows)
    return (alpha * eps - sigma * x0) / norm


def _finished(denoiser: GuidedDenoiser, states: Tensor, times: Tensor) -> Tensor:
    """From states z at noisy times to states x_t, with clean data at the end."""
    alpha, sigma = coefficients(denoiser.schedule, times.float(), states[0])
    states = torch.hypot(alpha, sigma) * states
    rows = torch.arange(len(states), device=states.device)
    clean = denoiser(states[:, -1], times[-1:].float().expand(len(states)), rows).x0
    return torch.cat([states, clean[:, None]], 1)


def integrate(slope: Slope, start: Tensor, stops: Tensor, tolerance: float) -> Tensor:
    """The states [b, stops, *latent] of dx/ds = slope(x, s) at every stop, the first of which is the start.

    A step's error is at most tolerance (1 + |x|) in each sample's root mean square, whatever the others need. A
    sample that is no longer finite is not refined.
    """
    rows = torch.arange(len(start), device=start.device)
    states = start[:, None].repeat_interleave(len(stops), 1)
    x, s, passed = start, stops[0].repeat(len(start)), torch.zeros_like(rows)
    size = FIRST_STEP * (stops[-1] - s)
    first = slope(x, s, rows)
    while len(rows):
        left = stops[passed + 1] - s
        lands = size.abs() >= left.abs()
        h = torch.where(lands, left, size)
        new, last, error = _step(slope, x, s, h, first, rows)
        allowed = tolerance * (1 + torch.maximum(x.abs(), new.abs()))
        ratio = (error / allowed).flatten(1).square().mean(1).sqrt().nan_to_num(0.0, posinf=0.0)
        longer = h * (SAFETY * ratio**-0.2).clamp(SHRINK, GROW)
        good = ratio <= 1
        arrives = good & lands
        size = torch.where(arrives & (size.abs() > longer.abs()), size, longer)  # a stop cuts one step, not the next
        x, first = (torch.where(expand(good, x), there, here) for here, there in ((x, new), (first, last)))
        s = torch.where(arrives, stops[passed + 1], torch.where(good, s + h, s))
        passed = passed + arrives
        states[rows[arrives], passed[arrives]] = x[arrives]
        going = passed + 1 < len(stops)
        rows, x, s, passed, size, first = (tensor[going] for tensor in (rows, x, s, passed, size, first))
    return states


def _step(slope: Slope, x: Tensor, s: Tensor, h: Tensor, first: Tensor, rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The states a step h further, the slopes there, and the errors."""
    slopes, length, new = [first], expand(h, x).to(x), x
    for node, stage in zip(NODES, STAGES, strict=True):
        new = x + length * _sum(stage, slopes)
        slopes.append(slope(new, s + node * h, rows))
    return new, slopes[-1], length * _sum(ERROR, slopes)


def _sum(weights: Sequence[float], slopes: Sequence[Tensor]) -> Tensor:
    return torch.stack([weight * slope for weight, slope in zip(weights, slopes, strict=True) if weight]).sum(0)
