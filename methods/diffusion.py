"""Do the algebra of diffusion that every method shares. Torch only.

One line defines it all:  x_t = alpha(t) x_0 + sigma(t) eps.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, NamedTuple

from fewstep.methods.lazy_torch import torch
from fewstep.methods.schedules import Schedule

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor

Prediction = Literal["epsilon", "sample", "v_prediction", "flow"]  # what a network answers with
Cond = Mapping[str, "Tensor"]  # what a network is conditioned on, each entry [b, ...]
Network = Callable[["Tensor", "Tensor", Cond], "Tensor"]


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
        return solve(self.schedule, self.prediction, x_t.float(), t, self.answer(x_t, t, cond))

    def answer(self, x_t: Float[Tensor, "b *latent"], t: Float[Tensor, "b"], cond: Cond) -> Float[Tensor, "b *latent"]:
        """What the network says, in its own prediction."""
        return self.net(x_t, self.schedule.network_time(t), cond).float()


def solve(schedule: Schedule, prediction: Prediction, x_t: Tensor, t: Tensor, output: Tensor) -> Estimate:
    """Solve [alpha sigma; p q] [x_0; eps] = [x_t; output] for (x_0, eps).

    v is normalised by sqrt(alpha^2 + sigma^2): 1 on a variance-preserving schedule, and on EDM's it makes
    v minus the F of that paper's preconditioning with sigma_data = 1.

    On clean data (sigma = 0) x_0 is x_t and there is no noise to speak of: eps is 0.
    """
    alpha, sigma = coefficients(schedule, t, x_t)
    norm = (alpha**2 + sigma**2).sqrt()
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
    }[prediction]


def guided(
    teacher: Denoiser,
    x_t: Float[Tensor, "b *latent"],
    t: Float[Tensor, "b"],
    cond: Cond,
    uncond: Cond,
    scale: Float[Tensor, "b"] | float,
) -> Estimate:
    """Classifier-free guidance (arXiv:2207.12598) of x_0 and eps alike.

    Both evaluations go through the network as one batch. A teacher with a guidance input is called once, and so is one
    that a scale of 1, the same for all samples, does not guide.
    """
    if not isinstance(scale, torch.Tensor):
        if scale == 1 and not teacher.has_guidance_input:
            return teacher(x_t, t, cond)
        scale = torch.full_like(t, scale)
    if teacher.has_guidance_input:
        return teacher(x_t, t, with_guidance(cond, scale))
    conditions = {name: torch.cat([value, uncond[name]]) for name, value in cond.items()}
    estimate = teacher(torch.cat([x_t, x_t]), torch.cat([t, t]), conditions)
    w = expand(scale, x_t)
    return Estimate(*(u + w * (c - u) for c, u in (both.chunk(2) for both in estimate)))


def step(schedule: Schedule, estimate: Estimate, s: Float[Tensor, "b"]) -> Float[Tensor, "b *latent"]:
    """Move an estimate to time s.

    DDIM on a variance-preserving schedule, Euler on EDM's and on rectified flow: in all three the step
    is x_s = alpha(s) x_0 + sigma(s) eps.
    """
    return diffuse(schedule, estimate.x0, estimate.eps, s)


def snr(schedule: Schedule, t: Float[Tensor, "b"]) -> Float[Tensor, "b"]:
    """alpha^2 / sigma^2."""
    return (schedule.alpha(t) / schedule.sigma(t)) ** 2


def with_guidance(cond: Cond, scale: Float[Tensor, "b"]) -> Cond:
    """The same condition with the guidance scale as one more input of the network; 1 is none."""
    return {**cond, "guidance_scale": scale}


def per_sample(x: Float[Tensor, "b *latent"]) -> Float[Tensor, "b"]:
    """The mean over all but the batch."""
    return x.flatten(1).mean(1)
