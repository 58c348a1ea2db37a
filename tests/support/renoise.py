from __future__ import annotations

from torch import Tensor

from fewstep.methods.diffusion import coefficients
from fewstep.methods.schedules import Schedule


def renoise(schedule: Schedule, x_s: Tensor, s: Tensor, t: Tensor, noise: Tensor) -> Tensor:
    """Sample q(x_t | x_s) for s < t with this unit noise."""
    alpha_s, sigma_s = coefficients(schedule, s, x_s)
    alpha_t, sigma_t = coefficients(schedule, t, x_s)
    ratio = alpha_t / alpha_s
    return ratio * x_s + (sigma_t**2 - (ratio * sigma_s) ** 2).clamp_min(0).sqrt() * noise
