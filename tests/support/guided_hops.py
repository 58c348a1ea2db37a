"""Samples of a guided teacher in a few hops of a consistency function that is exact: what no training can improve.

python -m tests.support.guided_hops    # prints how far they are from those of one hop, with all that might mend it
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from fewstep.methods.diffusion import Denoiser, guided, step
from tests.support import mixture
from tests.support.renoise import renoise

TIMESTEPS, SAMPLES, W = 100, 1500, 4.0
COND, UNCOND = mixture.conditions(torch.zeros(SAMPLES, dtype=torch.long))
Scale = Callable[[float], float]  # the guidance scale at a time from 1 in noise to 0 on data


def constant(w: float) -> Scale:
    """The same guidance scale at all times."""
    return lambda u: w


@torch.no_grad()
def follow(denoiser: Denoiser, x: Tensor, u: float, until: float, scale: Scale) -> Tensor:
    """The guided ODE from u to `until`, a timestep at a time."""
    count = round((u - until) * TIMESTEPS)
    us = torch.linspace(u, until, count + 1)
    times = denoiser.schedule.at(us).round()
    for (t, s), at in zip(itertools.pairwise(times), us.tolist(), strict=False):
        w = torch.full((len(x),), scale(at))
        x = step(denoiser.schedule, guided(denoiser, x, t.expand(len(x)), COND, UNCOND, w), s.expand(len(x)))
    return x


def sample(
    hops: int,
    scale: Scale,
    seed: int,
    *,
    gamma: float = 1.0,
    later: Scale | None = None,
    times: Sequence[float] = (),
) -> Tensor:
    """Samples in so many exact hops that start at `times`; those after the first may be of another scale, `later`.

    Each leads past the time of the next, (1 - gamma) of that time being left, and is noised back to it.
    """
    generator, denoiser = torch.Generator().manual_seed(seed), mixture.teacher(mixture.schedule(TIMESTEPS))
    x, at = torch.randn(SAMPLES, 2, generator=generator), denoiser.schedule.at
    starts = [*(times or [1 - hop / hops for hop in range(hops)]), 0.0]
    for hop, (u, then) in enumerate(itertools.pairwise(starts)):
        past = (1 - gamma) * then
        x = follow(denoiser, x, u, past, scale if hop == 0 or later is None else later)
        if gamma and then:
            s, t = (at(torch.tensor([time])).round().expand(SAMPLES) for time in (past, then))
            x = renoise(denoiser.schedule, x, s, t, torch.randn(SAMPLES, 2, generator=generator))
    return x


def distance(a: Tensor, b: Tensor) -> float:
    """The energy distance of two sets of samples."""
    return float(2 * torch.cdist(a, b).mean() - torch.cdist(a, a).mean() - torch.cdist(b, b).mean())


def main() -> None:
    """Print the distances in units of that between samples of one hop from other noise."""
    once = sample(1, constant(W), seed=0)
    null = distance(sample(1, constant(W), seed=5), once)

    def low(hops: int) -> list[float]:
        return [1.0, *(0.5 * (1 - hop / (hops - 1)) for hop in range(hops - 1))]

    def within(low: float, high: float) -> Scale:
        return lambda u: W if low < u < high else 1.0

    rows: dict[str, Callable[[int], tuple[Tensor, Tensor]]] = {}
    for gamma in (1.0, 0.3, 0.1, 0.0):
        rows[f"gamma {gamma:g}"] = lambda hops, gamma=gamma: (sample(hops, constant(W), 1, gamma=gamma), once)
    for w in (1.0, 6.0, 8.0, 12.0):
        rows[f"later hops of scale {w:g}"] = lambda hops, w=w: (sample(hops, constant(W), 1, later=constant(w)), once)
    rows["later hops from 0.5 on"] = lambda hops: (sample(hops, constant(W), 1, times=low(hops)), once)
    for name, scale in {"above 0.3": within(0.3, 2.0), "below 0.7": within(-1.0, 0.7)}.items():
        rows[f"guidance {name} alone"] = lambda hops, scale=scale: (sample(hops, scale, 1), sample(1, scale, 0))
    print("| | 2 hops | 4 | 8 |\n|---|---|---|---|")
    for name, pair in rows.items():
        print(f"| {name} |", " | ".join(f"{distance(*pair(hops)) / null:.1f}" for hops in (2, 4, 8)), "|", flush=True)


if __name__ == "__main__":
    main()
