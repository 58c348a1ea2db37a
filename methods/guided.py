"""Guided distillation: first one network for every guidance scale, then fewer steps.

Meng et al., "On Distillation of Guided Diffusion Models", arXiv:2210.03142.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, ClassVar

from fewstep.methods.base import Adapters, Losses, Nets, Round, Sampler, Source, Trained, Update
from fewstep.methods.batch import Batch
from fewstep.methods.diffusion import Estimate, diffuse, guided, with_guidance
from fewstep.methods.lazy_torch import torch
from fewstep.methods.losses import l2
from fewstep.methods.progressive import Weighting, halving, halvings, weight
from fewstep.methods.search_space import Choice, Range, Uniform
from fewstep.methods.validation import require_guidance_range, require_halvings, require_positive

if TYPE_CHECKING:
    from torch import Tensor


def matching_loss(nets: Nets, batch: Batch, *, guidance_scale: tuple[float, float], weighting: Weighting) -> Losses:
    """Stage one, at any time: the student at w answers as the teacher guided by w (section 3.1)."""
    rows, draw, student = batch["data"], batch.draw, nets["student"]
    t = student.schedule.at(1 - draw.uniform())  # in (0, 1]: on clean data the weight is infinite
    w = draw.uniform(*guidance_scale)
    x_t = diffuse(student.schedule, rows.x0, draw.normal(rows.x0), t)
    with torch.no_grad():
        x0 = guided(nets["teacher"], x_t, t, rows.cond, rows.uncond, w).x0
    distance = l2(student(x_t, t, with_guidance(rows.cond, w)).x0, x0)
    return {"x0": (weight(weighting, student.schedule, t) * distance).mean()}


def guided_progressive_loss(
    nets: Nets,
    batch: Batch,
    *,
    steps: int,
    guidance_scale: tuple[float, float],
    weighting: Weighting,
    stochastic: bool = False,
) -> Losses:
    """Stage two: progressive distillation with w drawn per sample, an input of teacher and student (section 3.2)."""
    rows, student, teacher = batch["data"], nets["student"], nets["teacher"]
    cond = with_guidance(rows.cond, batch.draw.uniform(*guidance_scale))

    def believe(x_t: Tensor, t: Tensor) -> Estimate:
        return teacher(x_t, t, cond)

    return {"x0": halving(student, believe, rows.x0, cond, batch.draw, steps, weighting, overshoots=stochastic)}


@dataclass(frozen=True)
class Guided(Adapters):
    """One matching round, then halvings; the stochastic sampler's steps are two forward and one back (section 3.3).

    The paper's w in [2, 14] for latent models is a guidance scale in [3, 15] here, where 1 is none; for
    models in pixels it takes [1, 5].
    """

    teacher_steps: int = 512
    student_steps: int = 4
    guidance_scale: tuple[float, float] = (3.0, 15.0)
    weighting: Weighting = "truncated_snr"
    stochastic: bool = False  # sampling; halvings then train steps of twice the length
    last_rounds_length: float = 2.0  # as in progressive distillation

    paper: ClassVar[str] = "2210.03142"
    space: ClassVar[Mapping[str, Range]] = {
        "last_rounds_length": Uniform(1.0, 4.0),
        "stochastic": Choice((False, True)),
        "teacher_steps": Choice((64, 256, 512)),
        "weighting": Choice(("truncated_snr", "snr_plus_one")),
    }

    def __post_init__(self) -> None:
        super().__post_init__()
        require_halvings(self.teacher_steps, self.student_steps)
        require_guidance_range(self.guidance_scale)
        require_positive(last_rounds_length=self.last_rounds_length)

    def rounds(self) -> tuple[Round, ...]:
        """Matching, whose student is the teacher of the first halving."""
        common = {"guidance_scale": self.guidance_scale, "weighting": self.weighting}
        student = Trained(self.lora, guidance_input=True)
        matching = Round(
            name="matching",
            updates=(Update("student", partial(matching_loss, **common)),),
            nets={"student": student},
            sources={"data": Source("data")},
            guides=True,
        )
        loss = partial(guided_progressive_loss, **common, stochastic=self.stochastic)
        rest = halvings(self.teacher_steps, self.student_steps, student, loss, self.last_rounds_length)
        return (matching, *(replace(halved, start="previous", teacher="previous") for halved in rest))

    def sampler(self) -> Sampler:
        """Guidance as an input."""
        return Sampler("overshooting" if self.stochastic else "ddim", guidance="input")
