"""Distribution matching distillation: follow the difference of two scores, the teacher's and the student's own.

Yin et al., "One-step Diffusion with Distribution Matching Distillation", arXiv:2311.18828, and "Improved
Distribution Matching Distillation", arXiv:2405.14867 (DMD2).
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, ClassVar

from fewstep.methods.adversarial import FINE_GRID, require_sampled
from fewstep.methods.base import (
    Adapters,
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
from fewstep.methods.batch import Batch, Draw, Rows, to_device_async
from fewstep.methods.diffusion import Denoiser, Estimate, diffuse, expand, guided, target
from fewstep.methods.discriminator import answer_and_logits, bottleneck_head, logits
from fewstep.methods.lazy_torch import torch
from fewstep.methods.losses import l1, l2
from fewstep.methods.schedules import sampled_times
from fewstep.methods.search_space import Choice, LogUniform, Range, Uniform
from fewstep.methods.validation import require, require_at_least, require_positive

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor

CLASSIFICATION_WEIGHT = 1e-2  # of the fake score's part in the discriminator, as the authors' code has it


def rollout(nets: Nets, batch: Batch, *, student_steps: int) -> Rows:
    """What the student believes at one of its steps, on its own way from pure noise.

    Backward simulation (section 4.5, arXiv:2405.14867): it is trained on what it meets when it is sampled. All samples
    of a global batch stop at the same step, so that all ranks make as many evaluations.
    """
    rows, draw, student = batch["prompts"], batch.draw, nets["student"]
    x_t = draw.normal(rows.blank)
    times = to_device_async(sampled_times(student.schedule, student_steps, FINE_GRID), x_t.device)
    times = times[:, None].expand(-1, len(x_t))
    stop = draw.integer(0, student_steps)
    for t, s in itertools.pairwise(times[: stop + 1]):
        x0 = student(x_t, t, rows.cond).x0
        x_t = diffuse(student.schedule, x0, draw.normal(x0), s)
    return Rows({"x_t": x_t, "t": times[stop], "x0": student(x_t, times[stop], rows.cond).x0}, rows.cond)


def noised(fake: Denoiser, x0: Float[Tensor, "b *latent"], draw: Draw) -> tuple[Tensor, Tensor, Tensor]:
    """(x_t, t, eps) at any time, a real number. Of the first thousandth, the network is shown its cleanest time."""
    t, eps = fake.schedule.at(draw.uniform()), draw.normal(x0)
    return diffuse(fake.schedule, x0, eps, t), t, eps


def fake_score_loss(nets: Nets, batch: Batch, *, is_adversarial: bool) -> Losses:
    """Equation 6: denoise the student's own samples, at any time, in the loss that the network was trained with.

    Where it carries the discriminator, that learns to tell those noised samples from real ones: -log(1 - D) of the
    generated, and -log D of the real. The authors' code noises the generated ones anew for it.
    """
    sample, draw, fake = batch["rollout"], batch.draw, nets["fake_score"]
    x_t, t, eps = noised(fake, sample.x0, draw)
    truth = target(fake.prediction, fake.schedule, Estimate(sample.x0, eps), t)
    if not is_adversarial:
        return {"denoising": l2(fake.answer(x_t, t, sample.cond), truth).mean()}
    answer, generated = answer_and_logits(fake, x_t, t, sample.cond)
    data = batch["data"]
    real = logits(fake, *noised(fake, data.x0, draw)[:2], data.cond)
    softplus = torch.nn.functional.softplus
    classification = softplus(generated).mean() + softplus(-real).mean()
    return {"denoising": l2(answer, truth).mean(), "classification": CLASSIFICATION_WEIGHT * classification}


def matching_gradient(
    nets: Nets, x0: Float[Tensor, "b *latent"], rows: Rows, draw: Draw, guidance_scale: float
) -> Float[Tensor, "b *latent"]:
    """Equation 7: where the fake score's x_0 differs from the teacher's, in units of the sample's own error.

    The normaliser is per sample. Equation 8's weight has a factor alpha_t more, which the authors' code leaves out.
    """
    teacher, fake = nets["teacher"], nets["fake_score"]
    t = teacher.schedule.at(draw.uniform(0.02, 0.98))  # any real number, where the authors' are whole
    x_t = diffuse(teacher.schedule, x0, draw.normal(x0), t)
    real = guided(teacher, x_t, t, rows.cond, rows.uncond, guidance_scale).x0
    norm = expand(l1(x0, real), x0)
    return ((fake(x_t, t, rows.cond).x0 - real) / norm).nan_to_num(0.0, 0.0, 0.0)


def student_loss(
    nets: Nets, batch: Batch, *, guidance_scale: float, regression_weight: float, adversarial_weight: float
) -> Losses:
    """The matching loss, whose gradient is `matching_gradient`, and the regression of equation 9 on stored pairs.

    With a discriminator also -log D of the samples, the non-saturating loss of a generator.
    """
    prompts, draw, student = batch["prompts"], batch.draw, nets["student"]
    x0 = student(batch["rollout"].x_t, batch["rollout"].t, prompts.cond).x0
    with torch.no_grad():
        moved = x0 - matching_gradient(nets, x0, prompts, draw, guidance_scale)
    losses = {"matching": l2(x0, moved).mean() / 2}
    if regression_weight:
        pairs = batch["pairs"]
        t = student.schedule.at(torch.ones_like(pairs.noise.flatten(1)[:, 0]))
        regression = perceptual(nets, student(pairs.noise, t, pairs.cond).x0, pairs.x0).mean()
        losses["regression"] = regression_weight * regression
    if adversarial_weight:
        fake = nets["fake_score"]
        judged = logits(fake, *noised(fake, x0, draw)[:2], prompts.cond)
        losses["adversarial"] = adversarial_weight * torch.nn.functional.softplus(-judged).mean()
    return losses


@dataclass(frozen=True)
class DistributionMatching(Adapters):
    """One step from prompts alone. The fake score starts as the teacher and learns the student's samples.

    DMD2 is `regression_weight=0`, `student_every=5` and an `adversarial_weight` (1e-3 for Stable Diffusion 1.5), which
    adds real data and a discriminator on the fake score's features; and several steps, by backward simulation.
    """

    student_steps: int = 1
    start_time: int = 0  # of the teacher's times, the first that is sampled at; 0 is the last of all
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
        super().__post_init__()
        require_at_least(1, student_steps=self.student_steps)
        require(
            self.student_steps == 1 or not self.regression_weight,
            f"regression_weight must be 0 where student_steps={self.student_steps}: "
            f"pairs teach the one step from noise, got {self.regression_weight:g}",
        )
        require_at_least(1, guidance_scale=self.guidance_scale, student_every=self.student_every)
        require_at_least(0, regression_weight=self.regression_weight, adversarial_weight=self.adversarial_weight)
        require_positive(fake_lr_scale=self.fake_lr_scale)
        require_sampled(self.student_steps, self.start_time)

    def rounds(self) -> tuple[Round, ...]:
        """One round of two networks; terms without weight need neither nets nor sources."""
        is_adversarial = self.adversarial_weight > 0
        head = bottleneck_head if is_adversarial else None
        nets: dict[str, Net] = {
            "student": Trained(self.lora, start_time=self.start_time),
            "fake_score": Trained(self.lora, init="teacher", lr_scale=self.fake_lr_scale, head=head),
        }
        sources = {"prompts": Source("prompts")}
        if self.regression_weight:
            nets |= {"decoder": Frozen("decoder"), "perceptual": Frozen("perceptual")}
            sources["pairs"] = Source("pairs")
        if is_adversarial:
            sources["data"] = Source("data")
        loss = partial(
            student_loss,
            guidance_scale=self.guidance_scale,
            regression_weight=self.regression_weight,
            adversarial_weight=self.adversarial_weight,
        )
        return (
            Round(
                name="distribution-matching",
                updates=(
                    Update("fake_score", partial(fake_score_loss, is_adversarial=is_adversarial)),
                    Update("student", loss, every=self.student_every),
                ),
                nets=nets,
                sources=sources,
                guides=self.guidance_scale != 1,
                rollout=partial(rollout, student_steps=self.student_steps),
            ),
        )

    def sampler(self) -> Sampler:
        """Noised again between steps, as in training; guidance is already inside."""
        return Sampler("renoising", grid=FINE_GRID)
