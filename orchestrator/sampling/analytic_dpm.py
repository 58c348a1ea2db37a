"""Samples by Analytic-DPM: ancestrally, with the best variance that a Gaussian step can have (arXiv:2201.06503)."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from fewstep.methods.diffusion import coefficients, diffuse
from fewstep.orchestrator.sampling.guidance import GuidedDenoiser
from fewstep.orchestrator.sampling.runge_kutta import trailing

GRID = 40  # even steps of the way from data to noise, between which the variance is interpolated


def calibrate(denoiser: GuidedDenoiser, x0: Tensor, noise: Tensor) -> Tensor:
    """The variance of x_0 that x_t leaves open, a mean over dimensions and the samples x0 [b, *latent]: [GRID + 1].

    The paper finds it from the score alone (Theorem 1): (sigma / alpha)^2 (1 - sigma^2 Gamma), Gamma being the mean
    square of the score. For an exact network the mean square error of its x_0 is the same; it stays finite where
    alpha is 0, and for a network that errs it is the variance that its error asks for (arXiv:2206.07309).
    """
    times = denoiser.schedule.at(torch.arange(1, GRID + 1) / GRID).to(x0.device)
    errors = [x0.new_zeros(())]
    for time in times:
        t = time.expand(len(x0))
        errors.append((denoiser(diffuse(denoiser.schedule, x0, noise, t), t).x0 - x0).square().mean())
    return torch.stack(errors).cpu()


def sample(
    denoiser: GuidedDenoiser,
    noise: Tensor,
    steps: int,
    variances: Sequence[float],
    generators: Sequence[torch.Generator],
) -> tuple[Tensor, Tensor]:
    """States [b, steps + 1, *latent] from unit noise to data on the trailing grid, and their times [steps + 1].

    Each sample's generator draws its noise. The step to x_s is Gaussian; its mean is DDPM's, and its variance is that
    of q(x_s | x_t, x_0) plus what the uncertainty of x_0 adds (Theorem 1). The last step is its mean.
    """
    schedule, x_t, states = denoiser.schedule, noise, [noise]
    times = trailing(schedule, steps).float().to(noise.device)
    for step, (time, earlier) in enumerate(pairwise(times)):
        t, s = time.expand(len(x_t)), earlier.expand(len(x_t))
        alpha_t, sigma_t = coefficients(schedule, t, x_t)
        alpha_s, sigma_s = coefficients(schedule, s, x_t)
        x0, eps = denoiser(x_t, t)
        retained = sigma_s**2 * alpha_t / (alpha_s * sigma_t)  # of x_t's own noise: sqrt(sigma_s^2 - lambda^2)
        x_t = alpha_s * x0 + retained * eps
        if step + 1 < steps:
            variance = float(np.interp(1 - step / steps, np.linspace(0, 1, len(variances)), variances))
            uncertainty = variance * (alpha_s - retained * alpha_t / sigma_t) ** 2
            fresh = torch.stack([torch.randn(x_t.shape[1:], generator=generator) for generator in generators])
            x_t = x_t + (sigma_s**2 - retained**2 + uncertainty).sqrt() * fresh.to(x_t.device)
        states.append(x_t)
    return torch.stack(states, 1), times
