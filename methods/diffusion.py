"""The diffusion algebra every method shares. Torch only.

One line defines it all:  x_t = alpha(t) x_0 + sigma(t) eps.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Literal, NamedTuple, Protocol

import torch
from torch import Tensor

if TYPE_CHECKING:
    from jaxtyping import Float

# What a network answers with; "both" is x_0 and eps, one half of the channels each.
Prediction = Literal["epsilon", "sample", "v_prediction", "flow", "both"]
Cond = Mapping[str, Tensor]  # what a network is conditioned on, each entry [b, ...]
Network = Callable[[Tensor, Tensor, Cond], Tensor]


class Schedule(Protocol):
    """A noise schedule, and how densely to visit it: u = 0 is data, u = 1 is noise."""

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
        """What the network is told."""
        ...


@dataclass(frozen=True)
class DiscreteVP:
    """Variance preserving by a table, as diffusers' schedulers hold it: `alphas_cumprod[t]` is alpha(t)^2.

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
        place = (t.double() + 1).clamp(0, len(table) - 1)
        low = place.floor().long().clamp(max=len(table) - 2)
        return torch.lerp(table[low], table[low + 1], place - low)

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
        noise = 1 - self._table.to(ratio.device, non_blocking=True)
        wanted = ratio.double() ** 2 / (1 + ratio.double() ** 2)
        high = torch.searchsorted(noise, wanted).clamp(1, len(noise) - 1)
        part = (wanted - noise[high - 1]) / (noise[high] - noise[high - 1])
        return (high - 2 + part.clamp(0, 1)).float()

    def network_time(self, t: Tensor) -> Tensor:
        """t itself; clean data is shown as time 0, the cleanest that the network was trained on."""
        return t.clamp_min(0)


@dataclass(frozen=True)
class CosineVP:
    """Variance preserving with alpha = cos(pi t / 2), log-SNR within [-20, 20] (arXiv:2202.00512, section 2)."""

    log_snr_max: float = 20.0

    def alpha(self, t: Tensor) -> Tensor:
        """cos(pi t / 2)."""
        return torch.cos(math.pi / 2 * t)

    def sigma(self, t: Tensor) -> Tensor:
        """sin(pi t / 2)."""
        return torch.sin(math.pi / 2 * t)

    def at(self, u: Tensor) -> Tensor:
        """Evenly in t, ends cut where the log-SNR reaches its limits."""
        low = math.atan(math.exp(-self.log_snr_max / 2)) * 2 / math.pi
        return low + u * (1 - 2 * low)

    def time_of(self, ratio: Tensor) -> Tensor:
        """The angle with that tangent."""
        return torch.atan(ratio) * 2 / math.pi

    def network_time(self, t: Tensor) -> Tensor:
        """t in [0, 1], as diffusers' networks take it: 0 to 1000."""
        return t * 1000


@dataclass(frozen=True)
class EDM:
    """Variance exploding with t = sigma, visited as in arXiv:2206.00364, Eq. 5."""

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
    """Straight paths, x_t = (1 - t) x_0 + t eps (arXiv:2209.03003), visited with a shift (arXiv:2403.03206, Eq. 23)."""

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


def coefficients(
    schedule: Schedule, t: Float[Tensor, "b"], like: Float[Tensor, "b *latent"]
) -> tuple[Float[Tensor, "b *ones"], Float[Tensor, "b *ones"]]:
    """alpha(t) and sigma(t), shaped to multiply `like`."""
    return expand(schedule.alpha(t), like), expand(schedule.sigma(t), like)


def expand(values: Float[Tensor, "b"], like: Float[Tensor, "b *latent"]) -> Float[Tensor, "b *ones"]:
    """One number per sample, shaped to multiply `like`."""
    return values.view(-1, *(1,) * (like.ndim - 1))


def diffuse(
    schedule: Schedule, x0: Float[Tensor, "b *latent"], eps: Float[Tensor, "b *latent"], t: Float[Tensor, "b"]
) -> Float[Tensor, "b *latent"]:
    """x_t = alpha(t) x_0 + sigma(t) eps."""
    alpha, sigma = coefficients(schedule, t, x0)
    return alpha * x0 + sigma * eps


class Estimate(NamedTuple):
    """What a denoiser believes about x_t: its clean part and its noise part."""

    x0: Float[Tensor, "b *latent"]
    eps: Float[Tensor, "b *latent"]

    @property
    def flow(self) -> Float[Tensor, "b *latent"]:
        """The velocity of straight paths, eps - x_0."""
        return self.eps - self.x0


@dataclass(frozen=True)
class Denoiser:
    """A network together with what its output means.

    `net` is anything callable as net(x_t, time, cond): a module, or a closed-form score in a test.
    Raises ValueError where the network cannot say what x_0 is at the schedule's last time.
    """

    net: Network
    schedule: Schedule
    prediction: Prediction
    has_guidance_input: bool = False  # the guidance scale is an input of the network, and "guided" already

    def __post_init__(self) -> None:
        if self.prediction == "epsilon" and self.schedule.alpha(self.schedule.at(torch.ones(1))).item() == 0:
            raise ValueError(
                "an epsilon network cannot say x_0 where alpha is 0 (zero terminal SNR): "
                "use a v_prediction or sample teacher, or let the student predict v"
            )

    def __call__(self, x_t: Float[Tensor, "b *latent"], t: Float[Tensor, "b"], cond: Cond) -> Estimate:
        """What the network believes of x_t, in float32 whatever the network computes in."""
        output = self.net(x_t, self.schedule.network_time(t), cond).float()
        return solve(self.schedule, self.prediction, x_t.float(), t, output)


def solve(schedule: Schedule, prediction: Prediction, x_t: Tensor, t: Tensor, output: Tensor) -> Estimate:
    """Solve [alpha sigma; p q] [x_0; eps] = [x_t; output] for (x_0, eps).

    v is normalised by sqrt(alpha^2 + sigma^2): 1 on a variance-preserving schedule, and on EDM's it makes
    v minus the F of that paper's preconditioning with sigma_data = 1.

    On clean data (sigma = 0) x_0 is x_t and there is no noise to speak of: eps is 0.

    Where a network answers with both, each counts as much as it is well conditioned (section 4, arXiv:2202.00512).
    """
    alpha, sigma = coefficients(schedule, t, x_t)
    norm = (alpha**2 + sigma**2).sqrt()
    if prediction == "both":
        clean, noise = output.chunk(2, 1)
        output, prediction = (sigma**2 * clean + alpha * (x_t - sigma * noise)) / norm**2, "sample"
    one, zero = torch.ones_like(alpha), torch.zeros_like(alpha)
    p, q = {
        "sample": (one, zero),
        "epsilon": (zero, one),
        "v_prediction": (-sigma / norm, alpha / norm),
        "flow": (-one, one),
    }[prediction]
    determinant = alpha * q - sigma * p
    # Where a branch is not taken its divisor is 1: a division by 0 there would still make the gradient NaN.
    determinant, signal = torch.where(sigma > 0, determinant, one), torch.where(sigma > 0, one, alpha)
    x0 = torch.where(sigma > 0, (q * x_t - sigma * output) / determinant, x_t / signal)
    eps = torch.where(sigma > 0, (alpha * output - p * x_t) / determinant, zero)
    return Estimate(x0, eps)


def target(prediction: Prediction, schedule: Schedule, estimate: Estimate, t: Float[Tensor, "b"]) -> Tensor:
    """What a network with this prediction has to answer to mean `estimate`; the inverse of `solve`."""
    alpha, sigma = coefficients(schedule, t, estimate.x0)
    norm = (alpha**2 + sigma**2).sqrt()
    return {
        "sample": estimate.x0,
        "epsilon": estimate.eps,
        "v_prediction": (alpha * estimate.eps - sigma * estimate.x0) / norm,
        "flow": estimate.flow,
        "both": torch.cat(estimate, 1),
    }[prediction]


def guided(
    teacher: Denoiser,
    x_t: Float[Tensor, "b *latent"],
    t: Float[Tensor, "b"],
    cond: Cond,
    uncond: Cond,
    scale: Float[Tensor, "b"],
) -> Estimate:
    """Classifier-free guidance (arXiv:2207.12598) of x_0 and eps alike; a scale of 1 is none.

    Both evaluations go through the network as one batch. A teacher that is told its guidance is asked once.
    """
    if teacher.has_guidance_input:
        return teacher(x_t, t, with_guidance(cond, scale))
    both = {name: torch.cat([value, uncond[name]]) for name, value in cond.items()}
    estimate = teacher(torch.cat([x_t, x_t]), torch.cat([t, t]), both)
    w = expand(scale, x_t)
    return Estimate(*(u + w * (c - u) for c, u in (part.chunk(2) for part in estimate)))


def step(schedule: Schedule, estimate: Estimate, s: Float[Tensor, "b"]) -> Float[Tensor, "b *latent"]:
    """Move an estimate to time s.

    DDIM on a variance-preserving schedule, Euler on EDM's and on rectified flow: in all three the step
    is x_s = alpha(s) x_0 + sigma(s) eps.
    """
    return diffuse(schedule, estimate.x0, estimate.eps, s)


def renoise(
    schedule: Schedule,
    x_s: Float[Tensor, "b *latent"],
    s: Float[Tensor, "b"],
    t: Float[Tensor, "b"],
    noise: Float[Tensor, "b *latent"],
) -> Float[Tensor, "b *latent"]:
    """A sample of q(x_t | x_s) for s < t, made with the given unit noise."""
    alpha_s, sigma_s = coefficients(schedule, s, x_s)
    alpha_t, sigma_t = coefficients(schedule, t, x_s)
    ratio = alpha_t / alpha_s
    return ratio * x_s + (sigma_t**2 - (ratio * sigma_s) ** 2).clamp_min(0).sqrt() * noise


def snr(schedule: Schedule, t: Float[Tensor, "b"]) -> Float[Tensor, "b"]:
    """alpha^2 / sigma^2."""
    return (schedule.alpha(t) / schedule.sigma(t)) ** 2


def with_guidance(cond: Cond, scale: Float[Tensor, "b"]) -> Cond:
    """The same condition with the guidance scale as one more input of the network; 1 is none."""
    return {**cond, "guidance_scale": scale}


def per_sample(x: Float[Tensor, "b *latent"]) -> Float[Tensor, "b"]:
    """The mean over all but the batch."""
    return x.flatten(1).mean(1)
