"""Distribution matching distillation: follow the difference of two scores, the teacher's and the student's own.

Yin et al., "One-step Diffusion with Distribution Matching Distillation", arXiv:2311.18828, and "Improved
Distribution Matching Distillation", arXiv:2405.14867 (DMD2).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, ClassVar

from fewstep.methods.adversarial import FINE_GRID
from fewstep.methods.base import (
    Critic,
    Frozen,
    LoRA,
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
from fewstep.methods.batch import Batch, Draw, Rows
from fewstep.methods.diffusion import Denoiser, Estimate, diffuse, expand, guided, target
from fewstep.methods.discriminator import bottleneck_head, classification, logits
from fewstep.methods.lazy_torch import torch
from fewstep.methods.losses import l1, l2
from fewstep.methods.search_space import Choice, LogUniform, Range, Uniform
from fewstep.methods.validation import require, require_at_least, require_positive

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor

CLASSIFICATION_WEIGHT = 1e-2  # of the fake score's part in the discriminator, as the authors' code has it


def generate(student: Denoiser, rows: Rows, draw: Draw, student_steps: int) -> Float[Tensor, "b *latent"]:
    """What the student believes at one of its steps, drawn evenly, on its own way from pure noise.

    Backward simulation (section 4.5, arXiv:2405.14867): it is trained on what it meets when it is sampled. Gradients
    reach the last step alone.
    """
    schedule, x_t = student.schedule, draw.normal(rows.blank)
    left = torch.full_like(x_t.flatten(1)[:, 0], student_steps)
    with torch.no_grad():
        for number in range(student_steps, 1, -1):
            goes_on = (left == number) & (draw.uniform() * number >= 1)  # of those that came here one in `number` stops
            x0 = student(x_t, schedule.at(left / student_steps), rows.cond).x0
            noised = diffuse(schedule, x0, draw.normal(x0), schedule.at((left - 1) / student_steps))
            x_t = torch.where(expand(goes_on, x_t), noised, x_t)
            left = left - goes_on.float()
    return student(x_t, schedule.at(left / student_steps), rows.cond).x0


def fake_score_loss(nets: Nets, batch: Batch, *, student_steps: int, is_adversarial: bool) -> Losses:
    """Equation 6: denoise the student's own samples, at any time, in the loss that the network was trained with.

    Where it carries the discriminator, its features learn to tell those samples from real ones too.
    """
    prompts, draw, fake = batch["prompts"], batch.draw, nets["fake_score"]
    with torch.no_grad():
        x0 = generate(nets["student"], prompts, draw, student_steps)
    t, eps = fake.schedule.at(draw.uniform()), draw.normal(x0)
    belief = fake(diffuse(fake.schedule, x0, eps, t), t, prompts.cond)
    answers = (target(fake.prediction, fake.schedule, estimate, t) for estimate in (belief, Estimate(x0, eps)))
    losses = {"denoising": l2(*answers).mean()}
    if is_adversarial:
        losses["classification"] = CLASSIFICATION_WEIGHT * classification(nets, x0, prompts, batch["data"], draw)
    return losses


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


def discriminator_loss(nets: Nets, batch: Batch, *, student_steps: int) -> Losses:
    """The head's turn, on the fake score's features as they are."""
    prompts, draw = batch["prompts"], batch.draw
    with torch.no_grad():
        x0 = generate(nets["student"], prompts, draw, student_steps)
    return {"classification": classification(nets, x0, prompts, batch["data"], draw)}


def student_loss(
    nets: Nets,
    batch: Batch,
    *,
    student_steps: int,
    guidance_scale: float,
    regression_weight: float,
    adversarial_weight: float,
) -> Losses:
    """The matching loss, whose gradient is `matching_gradient`, and the regression of equation 9 on stored pairs.

    With a discriminator also -log D of the samples, the non-saturating loss of a generator.
    """
    prompts, draw, student = batch["prompts"], batch.draw, nets["student"]
    x0 = generate(student, prompts, draw, student_steps)
    with torch.no_grad():
        moved = x0 - matching_gradient(nets, x0, prompts, draw, guidance_scale)
    losses = {"matching": l2(x0, moved).mean() / 2}
    if regression_weight:
        pairs = batch["pairs"]
        t = student.schedule.at(torch.ones_like(pairs.noise.flatten(1)[:, 0]))
        regression = perceptual(nets, student(pairs.noise, t, pairs.cond).x0, pairs.x0).mean()
        losses["regression"] = regression_weight * regression
    if adversarial_weight:
        losses["adversarial"] = (
            adversarial_weight * torch.nn.functional.softplus(-logits(nets, x0, prompts.cond, draw)).mean()
        )
    return losses


@dataclass(frozen=True)
class DistributionMatching:
    """One step from prompts alone. The fake score starts as the teacher and learns the student's samples.

    DMD2 is `regression_weight=0`, `student_every=5` and an `adversarial_weight` (1e-3 for Stable Diffusion 1.5), which
    adds real data and a discriminator on the fake score's features; and several steps, by backward simulation.
    """

    student_steps: int = 1
    guidance_scale: float = 3.0  # of the teacher's score; the fake one has none
    regression_weight: float = 0.25
    adversarial_weight: float = 0.0
    student_every: int = 1  # updates of the fake score per update of the student
    fake_lr_scale: float = 1.0
    lora_rank: int = 0  # 0 trains every weight
    lora_alpha: float = 0.0  # 0 is the rank
    lora_targets: tuple[str, ...] = ()  # how names of adapted modules end; () is LCM-LoRA's choice

    paper: ClassVar[str] = "2311.18828"
    space: ClassVar[Mapping[str, Range]] = {
        "fake_lr_scale": LogUniform(0.2, 2.0),
        "guidance_scale": Uniform(1.0, 8.0),
        "regression_weight": Choice((0.0, 0.25, 0.5)),
        "student_every": Choice((1, 5, 10)),
    }

    def __post_init__(self) -> None:
        require_at_least(1, student_steps=self.student_steps)
        require(
            self.student_steps == 1 or not self.regression_weight,
            f"regression_weight must be 0 where student_steps={self.student_steps}: "
            f"pairs teach the one step from noise, got {self.regression_weight:g}",
        )
        require(FINE_GRID % self.student_steps == 0, f"student_steps must divide {FINE_GRID}, got {self.student_steps}")
        require_at_least(1, guidance_scale=self.guidance_scale, student_every=self.student_every)
        require_at_least(0, regression_weight=self.regression_weight, adversarial_weight=self.adversarial_weight)
        require_at_least(0, lora_rank=self.lora_rank, lora_alpha=self.lora_alpha)
        require_positive(fake_lr_scale=self.fake_lr_scale)

    def rounds(self) -> tuple[Round, ...]:
        """One round of two or three networks; terms without weight need neither nets nor sources."""
        is_adversarial = self.adversarial_weight > 0
        steps = {"student_steps": self.student_steps}
        lora = LoRA(self.lora_rank, self.lora_alpha, self.lora_targets)
        fake_score = Trained(lora, init="teacher", lr_scale=self.fake_lr_scale)
        nets: dict[str, Net] = {"student": Trained(lora), "fake_score": fake_score}
        sources = {"prompts": Source("prompts")}
        updates = [Update("fake_score", partial(fake_score_loss, is_adversarial=is_adversarial, **steps))]
        if self.regression_weight:
            nets |= {"decoder": Frozen("decoder"), "perceptual": Frozen("perceptual")}
            sources["pairs"] = Source("pairs")
        if is_adversarial:
            nets["discriminator"] = Critic(bottleneck_head, on="fake_score")
            sources["data"] = Source("data")
            updates.append(Update("discriminator", partial(discriminator_loss, **steps)))
        loss = partial(
            student_loss,
            guidance_scale=self.guidance_scale,
            regression_weight=self.regression_weight,
            adversarial_weight=self.adversarial_weight,
            **steps,
        )
        updates.append(Update("student", loss, every=self.student_every))
        return (Round("distribution-matching", tuple(updates), nets, sources, is_guided=self.guidance_scale != 1),)

    def sampler(self) -> Sampler:
        """Noised again between steps, as in training; guidance is already inside."""
        return Sampler("renoising", grid=FINE_GRID)
