"""Distribution matching distillation: follow the difference of two scores, the teacher's and the student's own.

Yin et al., "One-step Diffusion with Distribution Matching Distillation", arXiv:2311.18828, and "Improved
Distribution Matching Distillation", arXiv:2405.14867 (DMD2).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

from methods.adversarial import FINE_GRID, discriminator_heads
from methods.base import (
    Batch,
    Choice,
    Critic,
    Frozen,
    LogUniform,
    Losses,
    Net,
    Nets,
    Range,
    Round,
    Sampler,
    Source,
    Trained,
    Uniform,
    Update,
)
from methods.checks import require, require_at_least, require_positive


def fake_score_loss(nets: Nets, batch: Batch) -> Losses:
    """Equation 6: denoise the student's own samples, at any time."""
    raise NotImplementedError("distribution matching declares its round, but its fake score's loss is not written yet")


def discriminator_loss(nets: Nets, batch: Batch) -> Losses:
    """Tell real samples from the student's (section 4.3, arXiv:2405.14867)."""
    raise NotImplementedError("distribution matching declares its round, but its discriminator loss is not written yet")


def student_loss(
    nets: Nets, batch: Batch, *, guidance_scale: float, regression_weight: float, adversarial_weight: float
) -> Losses:
    """Equation 7, and the regression of equation 9 on the teacher's pairs."""
    raise NotImplementedError("distribution matching declares its round, but its student loss is not written yet")


@dataclass(frozen=True)
class DistributionMatching:
    """One step from prompts alone. The fake score starts as the teacher and learns the student's samples.

    DMD2 is `regression_weight=0`, `student_every=5` and an `adversarial_weight`, which adds real data.
    """

    student_steps: int = 1
    guidance_scale: float = 3.0  # of the teacher's score; the fake one has none
    regression_weight: float = 0.25
    adversarial_weight: float = 0.0
    student_every: int = 1  # updates of the fake score per update of the student
    fake_lr_scale: float = 1.0

    paper: ClassVar[str] = "2311.18828"
    space: ClassVar[Mapping[str, Range]] = {
        "fake_lr_scale": LogUniform(0.2, 2.0),
        "guidance_scale": Uniform(1.0, 8.0),
        "regression_weight": Choice((0.0, 0.25, 0.5)),
        "student_every": Choice((1, 5, 10)),
    }

    def __post_init__(self) -> None:
        require(
            self.student_steps == 1, f"student_steps must be 1, the only step that is trained, got {self.student_steps}"
        )
        require_at_least(1, guidance_scale=self.guidance_scale, student_every=self.student_every)
        require_at_least(0, regression_weight=self.regression_weight, adversarial_weight=self.adversarial_weight)
        require_positive(fake_lr_scale=self.fake_lr_scale)

    def rounds(self) -> tuple[Round, ...]:
        """One round of two or three networks; terms without weight need neither nets nor sources."""
        nets: dict[str, Net] = {
            "student": Trained(),
            "fake_score": Trained(init="teacher", lr_scale=self.fake_lr_scale),
        }
        sources = {"prompts": Source("prompts")}
        updates = [Update("fake_score", fake_score_loss)]
        if self.regression_weight or self.adversarial_weight:
            nets["decoder"] = Frozen("decoder")
        if self.regression_weight:
            nets["perceptual"] = Frozen("perceptual")
            sources["pairs"] = Source("pairs")
        if self.adversarial_weight:
            nets |= {"discriminator": Critic(discriminator_heads), "features": Frozen("features")}
            sources["data"] = Source("data")
            updates.append(Update("discriminator", discriminator_loss))
        updates.append(Update("student", self._student_loss(), every=self.student_every))
        return (Round("distribution-matching", tuple(updates), nets, sources),)

    def _student_loss(self) -> partial[Losses]:
        return partial(
            student_loss,
            guidance_scale=self.guidance_scale,
            regression_weight=self.regression_weight,
            adversarial_weight=self.adversarial_weight,
        )

    def sampler(self) -> Sampler:
        """One step; noised again where more are asked for. Guidance is already inside."""
        return Sampler("renoising", grid=FINE_GRID)
