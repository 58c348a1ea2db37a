"""Adversarial diffusion distillation: a discriminator for sharpness, a teacher for content.

Sauer et al., "Adversarial Diffusion Distillation", arXiv:2311.17042.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

from torch import nn

from methods.base import (
    Batch,
    Critic,
    Frozen,
    LogUniform,
    Losses,
    Nets,
    Range,
    Round,
    Sampler,
    Source,
    Trained,
    Update,
)
from methods.checks import require_at_least, require_positive

FINE_GRID = 100  # four even steps on it are timesteps 999, 749, 499 and 249


def discriminator_heads(features: nn.Module) -> nn.Module:
    """Light heads on several layers of a frozen feature network, conditioned by projection (section 3.1)."""
    raise NotImplementedError("the discriminator of adversarial distillation is not written yet")


def discriminator_loss(nets: Nets, batch: Batch, *, student_steps: int, r1_weight: float) -> Losses:
    """Equation 3: hinge on real and on generated samples, R1 on the heads' inputs."""
    raise NotImplementedError(
        "adversarial distillation declares its round, but its discriminator loss is not written yet"
    )


def student_loss(
    nets: Nets, batch: Batch, *, student_steps: int, distill_weight: float, guidance_scale: float
) -> Losses:
    """Equation 1: please the discriminator, and be where the teacher denoises the noised sample to."""
    raise NotImplementedError("adversarial distillation declares its round, but its student loss is not written yet")


@dataclass(frozen=True)
class Adversarial:
    """Two alternating updates on real data: the discriminator, then the student.

    The student is trained at `student_steps` times with zero terminal SNR, where epsilon says nothing, so it
    answers with v.
    """

    student_steps: int = 4
    distill_weight: float = 2.5
    r1_weight: float = 1e-5
    guidance_scale: float = 7.5  # of the teacher; the paper gives none, this is Stable Diffusion's own
    discriminator_lr_scale: float = 1.0

    paper: ClassVar[str] = "2311.17042"
    space: ClassVar[Mapping[str, Range]] = {
        "discriminator_lr_scale": LogUniform(0.3, 10.0),
        "distill_weight": LogUniform(0.5, 5.0),
        "r1_weight": LogUniform(1e-6, 1e-3),
    }

    def __post_init__(self) -> None:
        require_at_least(1, student_steps=self.student_steps, guidance_scale=self.guidance_scale)
        require_at_least(0, distill_weight=self.distill_weight, r1_weight=self.r1_weight)
        require_positive(discriminator_lr_scale=self.discriminator_lr_scale)

    def rounds(self) -> tuple[Round, ...]:
        """One round; gradients reach the student through the decoder and the features, which stay as they are."""
        nets = {
            # Momentum makes two networks that chase each other oscillate: beta_1 is 0 for both.
            "student": Trained(betas=(0.0, 0.99), prediction="v_prediction", schedule="zero_snr"),
            "discriminator": Critic(discriminator_heads, lr_scale=self.discriminator_lr_scale),
            "decoder": Frozen("decoder"),
            "features": Frozen("features"),
        }
        judged = partial(discriminator_loss, student_steps=self.student_steps, r1_weight=self.r1_weight)
        taught = partial(
            student_loss,
            student_steps=self.student_steps,
            distill_weight=self.distill_weight,
            guidance_scale=self.guidance_scale,
        )
        updates = (Update("discriminator", judged), Update("student", taught))
        return (Round("adversarial", updates, nets, {"data": Source("data")}),)

    def sampler(self) -> Sampler:
        """Noise the sample again between steps; guidance already inside."""
        return Sampler("renoising", grid=FINE_GRID)
