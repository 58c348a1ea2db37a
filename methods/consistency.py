"""Consistency distillation: every point of the teacher's ODE maps to its end.

Song et al., "Consistency Models", arXiv:2303.01469.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, ClassVar, Literal

from fewstep.methods.base import (
    Averaged,
    Frozen,
    Losses,
    Net,
    Nets,
    Round,
    Sampler,
    Source,
    Trained,
    Update,
    perceptual,
)
from fewstep.methods.batch import Batch
from fewstep.methods.diffusion import Cond, Denoiser, Estimate, coefficients, diffuse, guided, step
from fewstep.methods.lazy_torch import torch
from fewstep.methods.losses import l1, l2, pseudo_huber
from fewstep.methods.schedules import Schedule, karras_times, least_noise
from fewstep.methods.search_space import Choice, Range
from fewstep.methods.solution_points import SolutionPoints, stored_points
from fewstep.methods.validation import require, require_at_least, require_decay, require_positive

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor

Metric = Literal["perceptual", "l1", "l2", "huber"]
SIGMA_DATA = 0.5


def consistency_function(
    net: Denoiser, x_t: Float[Tensor, "b *latent"], t: Float[Tensor, "b"], cond: Cond, sigma_min: float
) -> Float[Tensor, "b *latent"]:
    """f(x, sigma) = c_skip x + c_out F(c_in x), which is x itself at sigma_min (appendix C).

    There, x = x_t / alpha and sigma = sigma_t / alpha, and F is what EDM's preconditioning makes of the network's
    x_0. Written out, 1 / alpha cancels, F too: far from sigma_min this is x_0 itself, and a student that starts as
    its teacher starts as the teacher's denoiser, whatever the schedule and the prediction.
    """
    alpha, sigma = coefficients(net.schedule, t, x_t)
    towards = (1 - sigma_min * alpha / sigma).clamp_min(0)
    # c_skip / alpha over SIGMA_DATA^2: the student's, and EDM's own, where sigma_min is 0.
    ours = alpha / ((sigma - sigma_min * alpha) ** 2 + (SIGMA_DATA * alpha) ** 2)
    edms = alpha / (sigma**2 + (SIGMA_DATA * alpha) ** 2)
    return towards * net(x_t, t, cond).x0 + SIGMA_DATA**2 * (ours - towards * edms) * x_t


def heun_step(
    believe: Callable[[Tensor, Tensor], Estimate],
    schedule: Schedule,
    x_t: Float[Tensor, "b *latent"],
    t: Float[Tensor, "b"],
    s: Float[Tensor, "b"],
) -> Float[Tensor, "b *latent"]:
    """dx / dsigma = eps for x = x_t / alpha: a step with the mean of the slopes at both ends."""
    first = believe(x_t, t)
    second = believe(step(schedule, first, s), s)
    alpha_t, sigma_t = coefficients(schedule, t, x_t)
    alpha_s, sigma_s = coefficients(schedule, s, x_t)
    slope = (first.eps + second.eps) / 2
    # alpha_s (x_t / alpha_t + (sigma_s / alpha_s - sigma_t / alpha_t) slope)
    return alpha_s / alpha_t * (x_t - sigma_t * slope) + sigma_s * slope


def consistency_loss(
    nets: Nets,
    batch: Batch,
    *,
    grid: int,
    metric: Metric,
    huber_c: float,
    sigma_min: float,
    sigma_max: float,
    guidance_scale: float,
) -> Losses:
    """Algorithm 2: x_s is one Heun step of the teacher from x_t."""
    rows, draw, teacher = batch["data"], batch.draw, nets["teacher"]
    schedule = nets["student"].schedule
    sigma_min = least_noise(schedule, sigma_min)
    n = draw.integers(0, grid - 1)
    t, s = (karras_times(schedule, point, grid, sigma_min, sigma_max) for point in (n, n + 1))

    def believe(x: Tensor, time: Tensor) -> Estimate:
        return guided(teacher, x, time, rows.cond, rows.uncond, guidance_scale)

    x_t = diffuse(schedule, rows.x0, draw.normal(rows.x0), t)
    with torch.no_grad():
        x_s = heun_step(believe, schedule, x_t, t, s)
    points = SolutionPoints(x_t, t, x_s, s, rows.cond, torch.full_like(t, guidance_scale))
    return agreement(nets, points, metric, huber_c, sigma_min)


def stored_consistency_loss(nets: Nets, batch: Batch, *, metric: Metric, huber_c: float, sigma_min: float) -> Losses:
    """The same with a step that the teacher made when the row was generated; see `stored_points`."""
    return agreement(nets, stored_points(nets, batch), metric, huber_c, sigma_min)


def agreement(nets: Nets, points: SolutionPoints, metric: Metric, huber_c: float, sigma_min: float) -> Losses:
    """d(f(x_t, t), f_target(x_s, s)) of two points of one solution, s < t."""
    x_t, t, x_s, s, cond, _ = points
    with torch.no_grad():
        end = consistency_function(nets["target"], x_s, s, cond, sigma_min)
    x0 = consistency_function(nets["student"], x_t, t, cond, sigma_min)
    distances = {
        "perceptual": lambda: perceptual(nets, x0, end),
        "l1": lambda: l1(x0, end),
        "l2": lambda: l2(x0, end),
        "huber": lambda: pseudo_huber(x0, end, huber_c),
    }
    return {"consistency": distances[metric]().mean()}


@dataclass(frozen=True)
class Consistency:
    """The target is a close average of the student; a slower one is sampled. ImageNet's setting (table 3)."""

    student_steps: int = 2
    teacher_step: Literal["online", "stored"] = "online"
    grid: int = 40
    metric: Metric = "perceptual"  # perceptual is by `training.features`, where the paper has lpips
    huber_c: float = 0.03  # of metric huber, which the paper does not have (arXiv:2310.14189, section 3.3)
    sigma_min: float = 0.002  # where f is the identity, in units of x_0 + sigma eps
    sigma_max: float = 80.0
    guidance_scale: float = 1.0  # of the teacher, fixed; 1, the paper's, is none
    ema_decay: float = 0.95  # of the target
    sampling_ema_decay: float = 0.999943  # for the paper's 6e5 steps; 0.999 suits a few thousand

    paper: ClassVar[str] = "2303.01469"
    space: ClassVar[Mapping[str, Range]] = {
        "ema_decay": Choice((0.0, 0.9, 0.95, 0.99)),
        "grid": Choice((10, 18, 40, 80)),
        "metric": Choice(("perceptual", "l1", "l2", "huber")),
        "sampling_ema_decay": Choice((0.999, 0.9999, 0.999943)),
    }

    def __post_init__(self) -> None:
        steps, grid, low, high = self.student_steps, self.grid, self.sigma_min, self.sigma_max
        require_at_least(1, student_steps=steps)
        require_at_least(2, grid=grid)
        require(steps < grid, f"student_steps must be below grid={grid}, got {steps}")
        require_positive(huber_c=self.huber_c, sigma_min=low)
        require(high > low, f"sigma_max must be above sigma_min={low:g}, got {high:g}")
        require_at_least(1, guidance_scale=self.guidance_scale)
        require_decay(ema_decay=self.ema_decay, sampling_ema_decay=self.sampling_ema_decay)

    def rounds(self) -> tuple[Round, ...]:
        """One round, on real data with the teacher's ODE step, or on stored paths."""
        nets: dict[str, Net] = {
            "student": Trained(),
            "target": Averaged(decay=self.ema_decay, is_target=True),
            "average": Averaged(decay=self.sampling_ema_decay),
        }
        if self.metric == "perceptual":
            nets |= {"decoder": Frozen("decoder"), "perceptual": Frozen("perceptual")}
        common = {"metric": self.metric, "huber_c": self.huber_c, "sigma_min": self.sigma_min}
        scale, online = self.guidance_scale, self.teacher_step == "online"
        if online:
            source = Source("data")
            loss = partial(consistency_loss, **common, grid=self.grid, sigma_max=self.sigma_max, guidance_scale=scale)
        else:  # on the solver's own Karras grid, which goes on to clean data
            source = Source("path", self.grid, "heun-karras", (scale, scale))
            loss = partial(stored_consistency_loss, **common)
        return (
            Round(
                name="consistency",
                updates=(Update("student", loss),),
                nets=nets,
                sources={source.kind: source},
                result="average",
                online=online,
                guides=scale != 1,
            ),
        )

    def sampler(self) -> Sampler:
        """Multistep consistency sampling, at even times: the Karras grid is one of training alone."""
        return Sampler("renoising")
