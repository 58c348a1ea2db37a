"""Give the noise levels alpha(t) and sigma(t), and the times that a sampler visits."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Protocol

from fewstep.methods.lazy_torch import torch

if TYPE_CHECKING:
    from jaxtyping import Float, Int
    from torch import Tensor


class Schedule(Protocol):
    """Say how much signal and noise there is at a time t, and which times to visit: u = 0 is data, u = 1 is noise."""

    def alpha(self, t: Float[Tensor, "b"]) -> Float[Tensor, "b"]:
        """How much of the clean sample is left."""
        ...

    def sigma(self, t: Float[Tensor, "b"]) -> Float[Tensor, "b"]:
        """How much noise is in."""
        ...

    def at(self, u: Float[Tensor, "b"]) -> Float[Tensor, "b"]:
        """The time at u; N even steps of u are the steps of a good N-step sampler."""
        ...

    def time_of(self, ratio: Float[Tensor, "b"]) -> Float[Tensor, "b"]:
        """The time at which sigma / alpha is `ratio`: the noise level by its name in other schedules."""
        ...

    def network_time(self, t: Float[Tensor, "b"]) -> Float[Tensor, "b"]:
        """The time as the network takes it."""
        ...


def sampled_times(schedule: Schedule, num_steps: int, grid: int) -> Float[Tensor, "steps"]:
    """The times that a student is asked at in so many steps, noise first.

    Even ones on straight paths. On a table, those of `grid` even ones that diffusers' schedulers for consistency models
    choose: even where `num_steps` divides it, and else the next one towards the noise.
    """
    steps = torch.arange(num_steps, dtype=torch.float64)
    passed = (steps * grid / num_steps).floor() / grid if isinstance(schedule, DiscreteVP) else steps / num_steps
    return schedule.at(1 - passed).float()


@dataclass(frozen=True)
class DiscreteVP:
    """Preserve variance by a table, as diffusers' schedulers have it: `alphas_cumprod[t]` is alpha(t)^2.

    t runs from -1, clean data, to the last index; between indices alpha^2 is linear. `at` is the trailing
    grid (arXiv:2305.08891, section 3.3): N steps visit T i / N - 1.
    """

    alphas_cumprod: Float[Tensor, "times"] = field(repr=False)

    @cached_property
    def _table(self) -> Tensor:
        """alpha^2 at the times -1, 0, 1, ..., on the CPU."""
        return torch.cat([torch.ones(1, dtype=torch.float64), self.alphas_cumprod.double().cpu()])

    def _alpha_squared(self, t: Tensor) -> Tensor:
        table = self._table.to(t.device, non_blocking=True)
        position = (t.double() + 1).clamp(0, len(table) - 1)
        low = position.floor().long().clamp(max=len(table) - 2)
        return torch.lerp(table[low], table[low + 1], position - low)

    def alpha(self, t: Tensor) -> Tensor:
        """sqrt(alphas_cumprod), 1 on clean data."""
        return self._alpha_squared(t).sqrt().float()

    def sigma(self, t: Tensor) -> Tensor:
        """sqrt(1 - alphas_cumprod), 0 on clean data."""
        return (1 - self._alpha_squared(t)).sqrt().float()

    def at(self, u: Tensor) -> Tensor:
        """The trailing grid."""
        return u * len(self.alphas_cumprod) - 1

    def time_of(self, ratio: Tensor) -> Tensor:
        """By interpolation, the inverse of alpha and sigma; the last time is as noisy as it gets."""
        table = 1 - self._table.to(ratio.device, non_blocking=True)
        sigma_squared = ratio.double() ** 2 / (1 + ratio.double() ** 2)
        high = torch.searchsorted(table, sigma_squared).clamp(1, len(table) - 1)
        fraction = (sigma_squared - table[high - 1]) / (table[high] - table[high - 1])
        return (high - 2 + fraction.clamp(0, 1)).float()

    def network_time(self, t: Tensor) -> Tensor:
        """t itself; clean data is shown as time 0, the cleanest that the network was trained on."""
        return t.clamp_min(0)


@dataclass(frozen=True)
class EDM:
    """Let variance explode with t = sigma, visited as in arXiv:2206.00364, Eq. 5."""

    sigma_min: float = 2e-3
    sigma_max: float = 80.0
    rho: float = 7.0

    def alpha(self, t: Tensor) -> Tensor:
        """1."""
        return torch.ones_like(t)

    def sigma(self, t: Tensor) -> Tensor:
        """The time itself."""
        return t

    def at(self, u: Tensor) -> Tensor:
        """Evenly in sigma^(1/rho)."""
        low, high = self.sigma_min ** (1 / self.rho), self.sigma_max ** (1 / self.rho)
        return (low + u * (high - low)) ** self.rho

    def time_of(self, ratio: Tensor) -> Tensor:
        """The ratio itself."""
        return ratio

    def network_time(self, t: Tensor) -> Tensor:
        """c_noise, a quarter of log sigma (Table 1)."""
        return t.clamp_min(1e-20).log() / 4


@dataclass(frozen=True)
class RectifiedFlow:
    """Lead along straight paths, x_t = (1 - t) x_0 + t eps (arXiv:2209.03003).

    They are visited with a shift (arXiv:2403.03206, Eq. 23).
    """

    shift: float = 1.0

    def alpha(self, t: Tensor) -> Tensor:
        """1 - t."""
        return 1 - t

    def sigma(self, t: Tensor) -> Tensor:
        """The time itself."""
        return t

    def at(self, u: Tensor) -> Tensor:
        """Shifted towards the noise."""
        return self.shift * u / (1 + (self.shift - 1) * u)

    def time_of(self, ratio: Tensor) -> Tensor:
        """r / (1 + r)."""
        return ratio / (1 + ratio)

    def network_time(self, t: Tensor) -> Tensor:
        """0 to 1000."""
        return t * 1000


def karras_times(
    schedule: Schedule, point: Int[Tensor, "b"], grid: int, sigma_min: float, sigma_max: float
) -> Float[Tensor, "b"]:
    """The times of points 0 (most noise) to grid - 1 of the Karras grid, which ends at sigma_max or with the schedule.

    Where a schedule ends in nothing but noise, sigma_max is short of it, and sampling starts a little above the grid:
    at 999 for 991 on the embedded fashion teacher. Stored paths start where sampling does.
    """
    last = schedule.at(torch.ones(1))
    largest = (schedule.sigma(last) / schedule.alpha(last)).item()  # infinite, where nothing but noise is left
    levels = EDM(sigma_min, min(sigma_max, largest))
    return schedule.time_of(levels.at(1 - point.double() / (grid - 1)).float())


def least_noise(schedule: Schedule, sigma_min: float) -> float:
    """Where f is the identity: no lower than at a table's first time, 0.029 for Stable Diffusion's.

    The network is told of no time before it, so that what it answers to less noise is that time's.
    """
    if not isinstance(schedule, DiscreteVP):
        return sigma_min
    first = torch.zeros(1)
    return max(sigma_min, (schedule.sigma(first) / schedule.alpha(first)).item())
