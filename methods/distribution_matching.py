"""Distribution matching distillation: follow the difference of two scores, the teacher's and the student's own.

Yin et al., "One-step Diffusion with Distribution Matching Distillation", arXiv:2311.18828, and "Improved
Distribution Matching Distillation", arXiv:2405.14867 (DMD2).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from methods.adversarial import FINE_GRID, discriminator_heads, fooling_loss, hinge_loss
from methods.base import (
    Batch,
    Choice,
    Critic,
    Draw,
    Frozen,
    LogUniform,
    Losses,
    Net,
    Nets,
    Range,
    Round,
    Rows,
    Sampler,
    Source,
    Trained,
    Uniform,
    Update,
    perceptual,
)
from methods.checks import require, require_at_least, require_positive
from methods.diffusion import Cond, Denoiser, Estimate, diffuse, expand, guided, target
from methods.losses import l1, l2

if TYPE_CHECKING:
    from jaxtyping import Float


def generate(student: Denoiser, noise: Float[Tensor, "b *latent"], cond: Cond) -> Float[Tensor, "b *latent"]:
    """The student's sample in its one step."""
    return student(noise, student.schedule.at(torch.ones_like(noise.flatten(1)[:, 0])), cond).x0


def fake_score_loss(nets: Nets, batch: Batch) -> Losses:
    """Equation 6: denoise the student's own samples, at any time, in the loss that the network was trained with."""
    prompts, draw, fake = batch["prompts"], batch.draw, nets["fake_score"]
    with torch.no_grad():
        x0 = generate(nets["student"], draw.normal(prompts.blank), prompts.cond)
    t, eps = fake.schedule.at(draw.uniform()), draw.normal(x0)
    found = fake(diffuse(fake.schedule, x0, eps, t), t, prompts.cond)
    answers = (target(fake.prediction, fake.schedule, estimate, t) for estimate in (found, Estimate(x0, eps)))
    return {"denoising": l2(*answers).mean()}


def matching_gradient(
    nets: Nets, x0: Float[Tensor, "b *latent"], rows: Rows, draw: Draw, guidance_scale: float
) -> Float[Tensor, "b *latent"]:
    """Equation 7: where the fake score's x_0 differs from the teacher's, in units of the sample's own error.

    The normaliser is per sample. Equation 8's weight has a factor alpha_t more, which the authors' code leaves out.
    """
    teacher, fake = nets["teacher"], nets["fake_score"]
    t = teacher.schedule.at(draw.uniform(0.02, 0.98))
    x_t = diffuse(teacher.schedule, x0, draw.normal(x0), t)
    real = guided(teacher, x_t, t, rows.cond, rows.uncond, torch.full_like(t, guidance_scale)).x0
    norm = expand(l1(x0, real), x0)
    return ((fake(x_t, t, rows.cond).x0 - real) / norm).nan_to_num(0.0, 0.0, 0.0)


def discriminator_loss(nets: Nets, batch: Batch) -> Losses:
    """Tell real samples from the student's (section 4.3, arXiv:2405.14867), by hinge."""
    data, student = batch["data"], nets["student"]
    with torch.no_grad():
        x0 = generate(student, batch.draw.normal(data.x0), data.cond)
    return {"hinge": hinge_loss(nets, x0, data)}


def student_loss(
    nets: Nets, batch: Batch, *, guidance_scale: float, regression_weight: float, adversarial_weight: float
) -> Losses:
    """The matching loss, whose gradient is `matching_gradient`, and the regression of equation 9 on stored pairs."""
    prompts, draw, student = batch["prompts"], batch.draw, nets["student"]
    x0 = generate(student, draw.normal(prompts.blank), prompts.cond)
    with torch.no_grad():
        moved = x0 - matching_gradient(nets, x0, prompts, draw, guidance_scale)
    losses = {"matching": l2(x0, moved).mean() / 2}
    if regression_weight:
        pairs = batch["pairs"]
        found = generate(student, pairs.noise, pairs.cond)
        losses["regression"] = regression_weight * perceptual(nets, found, pairs.x0).mean()
    if adversarial_weight:
        data = batch["data"]
        fresh = generate(student, draw.normal(data.x0), data.cond)
        losses["adversarial"] = adversarial_weight * fooling_loss(nets, fresh, data)
    return losses


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
        return (Round("distribution-matching", tuple(updates), nets, sources, is_guided=self.guidance_scale != 1),)

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
