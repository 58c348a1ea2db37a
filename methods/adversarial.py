"""Adversarial diffusion distillation: a discriminator for sharpness, a teacher for content.

Sauer et al., "Adversarial Diffusion Distillation", arXiv:2311.17042.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, ClassVar, Literal

from fewstep.methods.base import (
    Critic,
    Frozen,
    LoRA,
    Losses,
    Nets,
    Round,
    Sampler,
    Source,
    Trained,
    Update,
    callable_network,
)
from fewstep.methods.batch import Batch, Rows
from fewstep.methods.diffusion import Denoiser, coefficients, diffuse, expand, guided
from fewstep.methods.feature_discriminator import discriminator_heads, fooling_loss, hinge_loss
from fewstep.methods.lazy_torch import torch
from fewstep.methods.losses import l2
from fewstep.methods.search_space import Choice, LogUniform, Range
from fewstep.methods.validation import require, require_at_least, require_positive

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor

FINE_GRID = 100  # four even steps on it are timesteps 999, 749, 499 and 249
Weighting = Literal["exponential", "sds", "nfsd"]


def sample(nets: Nets, batch: Batch, student_steps: int) -> Float[Tensor, "b *latent"]:
    """The student's x_0 from real data noised to one of its times."""
    rows, draw, student = batch["data"], batch.draw, nets["student"]
    t = student.schedule.at(draw.integers(1, student_steps + 1) / student_steps)
    return student(diffuse(student.schedule, rows.x0, draw.normal(rows.x0), t), t, rows.cond).x0


def discriminator_loss(nets: Nets, batch: Batch, *, student_steps: int, r1_weight: float) -> Losses:
    """The discriminator's turn."""
    with torch.no_grad():
        generated = sample(nets, batch, student_steps)
    return {"hinge": hinge_loss(nets, generated, batch["data"], r1_weight)}


def student_loss(
    nets: Nets,
    batch: Batch,
    *,
    student_steps: int,
    distill_weight: float,
    guidance_scale: float,
    weighting: Weighting,
) -> Losses:
    """Equation 1: please the discriminator, and be where the teacher denoises the noised sample to."""
    rows = batch["data"]
    x0 = sample(nets, batch, student_steps)
    losses = {"adversarial": fooling_loss(nets, x0, rows)}
    if distill_weight:
        teacher = nets["teacher"]
        t = teacher.schedule.at(batch.draw.uniform(0.02, 0.98))
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
        return guided(teacher, x_t, t, rows.cond, rows.uncond, torch.full_like(t, guidance_scale)).x0
    unconditional, conditional = teacher(x_t, t, rows.uncond).eps, teacher(x_t, t, rows.cond).eps
    is_clean = expand((t < teacher.schedule.at(torch.full_like(t, 0.2))).float(), x0)
    alpha, sigma = coefficients(teacher.schedule, t, x0)
    return x0 - sigma / alpha * (is_clean * unconditional + guidance_scale * (conditional - unconditional))


def distill_scale(teacher: Denoiser, t: Float[Tensor, "b"], weighting: Weighting) -> Float[Tensor, "b"]:
    """c(t): alpha, or what makes the gradient that of score distillation with weight sigma^2 (appendix A)."""
    alpha, sigma = teacher.schedule.alpha(t), teacher.schedule.sigma(t)
    return alpha if weighting == "exponential" else alpha * sigma / 2


@dataclass(frozen=True)
class Adversarial:
    """Two alternating updates on real data: the discriminator, then the student.

    The student is trained at `student_steps` times with zero terminal SNR, where epsilon says nothing, so it
    answers with v.
    """

    student_steps: int = 4
    distill_weight: float = 2.5
    weighting: Weighting = "exponential"
    r1_weight: float = 1e-5
    guidance_scale: float = 7.5  # of the teacher; the paper gives none, this is Stable Diffusion's own
    discriminator_lr_scale: float = 1.0
    lora_rank: int = 0  # 0 trains every weight
    lora_alpha: float = 0.0  # 0 is the rank
    lora_targets: tuple[str, ...] = ()  # how names of adapted modules end; () is LCM-LoRA's choice

    paper: ClassVar[str] = "2311.17042"
    space: ClassVar[Mapping[str, Range]] = {
        "discriminator_lr_scale": LogUniform(0.3, 10.0),
        "distill_weight": LogUniform(0.5, 5.0),
        "r1_weight": LogUniform(1e-6, 1e-3),
        "weighting": Choice(("exponential", "sds", "nfsd")),
    }

    def __post_init__(self) -> None:
        require_at_least(1, student_steps=self.student_steps, guidance_scale=self.guidance_scale)
        require_at_least(0, distill_weight=self.distill_weight, r1_weight=self.r1_weight)
        require_at_least(0, lora_rank=self.lora_rank, lora_alpha=self.lora_alpha)
        require_positive(discriminator_lr_scale=self.discriminator_lr_scale)
        require(FINE_GRID % self.student_steps == 0, f"student_steps must divide {FINE_GRID}, got {self.student_steps}")

    def rounds(self) -> tuple[Round, ...]:
        """One round; gradients reach the student through the decoder and the features, which stay as they are."""
        lora = LoRA(self.lora_rank, self.lora_alpha, self.lora_targets)
        nets = {
            # Momentum makes two networks that chase each other oscillate: beta_1 is 0 for both.
            "student": Trained(lora, betas=(0.0, 0.99), prediction="v_prediction", schedule="zero_snr"),
            "discriminator": Critic(discriminator_heads, lr_scale=self.discriminator_lr_scale),
            "decoder": Frozen("decoder"),
            "features": Frozen("features"),
        }
        loss_of_discriminator = partial(discriminator_loss, student_steps=self.student_steps, r1_weight=self.r1_weight)
        loss_of_student = partial(
            student_loss,
            student_steps=self.student_steps,
            distill_weight=self.distill_weight,
            guidance_scale=self.guidance_scale,
            weighting=self.weighting,
        )
        updates = (Update("discriminator", loss_of_discriminator), Update("student", loss_of_student))
        online = self.distill_weight > 0
        is_guided = online and (self.weighting == "nfsd" or self.guidance_scale != 1)
        return (Round("adversarial", updates, nets, {"data": Source("data")}, online=online, is_guided=is_guided),)

    def sampler(self) -> Sampler:
        """Noise the sample again between steps; guidance already inside."""
        return Sampler("renoising", grid=FINE_GRID)
