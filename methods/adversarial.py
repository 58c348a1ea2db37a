"""Adversarial diffusion distillation: a discriminator for sharpness, a teacher for content.

Sauer et al., "Adversarial Diffusion Distillation", arXiv:2311.17042.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, ClassVar, Literal

from fewstep.methods.base import (
    Adapters,
    Critic,
    Frozen,
    Losses,
    Nets,
    Round,
    Sampler,
    Source,
    Trained,
    Update,
    callable_network,
)
from fewstep.methods.batch import Batch, Rows, to_device_async
from fewstep.methods.diffusion import Denoiser, coefficients, diffuse, expand, guided
from fewstep.methods.feature_discriminator import discriminator_heads, fooling_loss, hinge_loss
from fewstep.methods.lazy_torch import torch
from fewstep.methods.losses import l2
from fewstep.methods.schedules import sampled_times
from fewstep.methods.search_space import Choice, LogUniform, Range
from fewstep.methods.validation import require, require_at_least, require_positive

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor

FINE_GRID = 100  # four even steps on it are timesteps 999, 749, 499 and 249
Weighting = Literal["exponential", "sds", "nfsd"]


def rollout(nets: Nets, batch: Batch, *, student_steps: int) -> Rows:
    """Real data noised to one of the student's times, and its x_0 from there.

    At the first of them it is pure noise, as when it is sampled. The paper changes the noise levels to that end (zero
    terminal SNR), where an epsilon network's answer would say nothing of x_0.
    """
    rows, draw, student = batch["data"], batch.draw, nets["student"]
    step, eps = draw.integers(0, student_steps), draw.normal(rows.x0)
    t = to_device_async(sampled_times(student.schedule, student_steps, FINE_GRID), step.device)[step]
    x_t = torch.where(expand(step == 0, eps), eps, diffuse(student.schedule, rows.x0, eps, t))
    return Rows({"x_t": x_t, "t": t, "x0": student(x_t, t, rows.cond).x0}, rows.cond)


def discriminator_loss(nets: Nets, batch: Batch, *, r1_weight: float) -> Losses:
    """The discriminator's turn."""
    return {"hinge": hinge_loss(nets, batch["rollout"].x0, batch["data"], r1_weight)}


def student_loss(
    nets: Nets, batch: Batch, *, distill_weight: float, guidance_scale: float, weighting: Weighting
) -> Losses:
    """Equation 1: please the discriminator, and be where the teacher denoises the noised sample to."""
    rows, start = batch["data"], batch["rollout"]
    x0 = nets["student"](start.x_t, start.t, rows.cond).x0
    losses = {"adversarial": fooling_loss(nets, x0, rows)}
    if distill_weight:
        teacher = nets["teacher"]
        t = teacher.schedule.at(batch.draw.uniform(0.02, 0.98))  # as in distribution matching: the paper says none
        with torch.no_grad():
            x_t = diffuse(teacher.schedule, x0, batch.draw.normal(x0), t)
            target = teachers_view(teacher, x0, x_t, t, rows, guidance_scale, weighting)
        decode = callable_network(nets, "decoder")  # the distance is one of pixels, even for a latent model
        distance = distill_scale(teacher, t, weighting) * l2(decode(x0), decode(target))
        losses["distillation"] = distill_weight * distance.mean()
    return losses


def teachers_view(
    teacher: Denoiser, x0: Tensor, x_t: Tensor, t: Tensor, rows: Rows, guidance_scale: float, weighting: Weighting
) -> Tensor:
    """What the noised sample should have been.

    The teacher's guided x_0; for nfsd (arXiv:2310.17590), x_0 moved by the guidance direction alone, plus the
    unconditional score where there is little noise: what is left of SDS without its noise. Where there is more, the
    paper adds the unconditional score less that of a negative prompt. Rows have no negative prompt but the null
    condition, for which that is zero.
    """
    if weighting != "nfsd":
        return guided(teacher, x_t, t, rows.cond, rows.uncond, guidance_scale).x0
    unconditional, conditional = teacher(x_t, t, rows.uncond).eps, teacher(x_t, t, rows.cond).eps
    is_clean = expand((t < teacher.schedule.at(torch.full_like(t, 0.2))).float(), x0)
    alpha, sigma = coefficients(teacher.schedule, t, x0)
    return x0 - sigma / alpha * (is_clean * unconditional + guidance_scale * (conditional - unconditional))


def distill_scale(teacher: Denoiser, t: Float[Tensor, "b"], weighting: Weighting) -> Float[Tensor, "b"]:
    """c(t): alpha, or what makes the gradient that of score distillation with weight sigma^2 (appendix A)."""
    alpha, sigma = teacher.schedule.alpha(t), teacher.schedule.sigma(t)
    return alpha if weighting == "exponential" else alpha * sigma / 2


@dataclass(frozen=True)
class Adversarial(Adapters):
    """Two alternating updates on real data: the discriminator, then the student."""

    student_steps: int = 4
    start_time: int = 0  # of the teacher's times, the first that is sampled at; 0 is the last of all
    distill_weight: float = 2.5
    weighting: Weighting = "exponential"
    r1_weight: float = 1e-5
    guidance_scale: float = 7.5  # of the teacher; the paper gives none, this is Stable Diffusion's own
    discriminator_lr_scale: float = 1.0

    paper: ClassVar[str] = "2311.17042"
    space: ClassVar[Mapping[str, Range]] = {
        "discriminator_lr_scale": LogUniform(0.3, 10.0),
        "distill_weight": LogUniform(0.5, 5.0),
        "r1_weight": LogUniform(1e-6, 1e-3),
        "weighting": Choice(("exponential", "sds", "nfsd")),
    }

    def __post_init__(self) -> None:
        super().__post_init__()
        require_at_least(1, student_steps=self.student_steps, guidance_scale=self.guidance_scale)
        require_at_least(0, distill_weight=self.distill_weight, r1_weight=self.r1_weight)
        require_positive(discriminator_lr_scale=self.discriminator_lr_scale)
        require_sampled(self.student_steps, self.start_time)

    def rounds(self) -> tuple[Round, ...]:
        """One round; gradients reach the student through the decoder and the features, which stay as they are."""
        nets = {
            # Momentum makes two networks that chase each other oscillate: beta_1 is 0 for both.
            "student": Trained(self.lora, betas=(0.0, 0.99), start_time=self.start_time),
            "discriminator": Critic(discriminator_heads, lr_scale=self.discriminator_lr_scale),
            "decoder": Frozen("decoder"),
            "features": Frozen("features"),
        }
        loss_of_student = partial(
            student_loss,
            distill_weight=self.distill_weight,
            guidance_scale=self.guidance_scale,
            weighting=self.weighting,
        )
        return (
            Round(
                name="adversarial",
                updates=(
                    Update("discriminator", partial(discriminator_loss, r1_weight=self.r1_weight)),
                    Update("student", loss_of_student),
                ),
                nets=nets,
                sources={"data": Source("data")},
                online=self.distill_weight > 0,
                guides=self.weighting == "nfsd" or self.guidance_scale != 1,
                rollout=partial(rollout, student_steps=self.student_steps),
            ),
        )

    def sampler(self) -> Sampler:
        """Noise the sample again between steps; guidance already inside."""
        return Sampler("renoising", grid=FINE_GRID)


def require_sampled(student_steps: int, start_time: int) -> None:
    """Refuse steps or a start that sampling on the fine grid cannot have."""
    require(student_steps <= FINE_GRID, f"student_steps must be at most {FINE_GRID}, got {student_steps}")
    nearest = max(round((start_time + 1) / FINE_GRID), 1) * FINE_GRID - 1
    require(
        start_time == 0 or start_time == nearest,
        f"start_time must be one less than a multiple of {FINE_GRID}, got {start_time}; try {nearest}",
    )
