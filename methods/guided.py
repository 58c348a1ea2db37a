"""Guided distillation: first one network for every guidance scale, then fewer steps.

Meng et al., "On Distillation of Guided Diffusion Models", arXiv:2210.03142.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import ClassVar

from methods.base import Batch, Choice, Losses, Nets, Range, Round, Sampler, Source, Trained, Update
from methods.checks import require_guidance_range, require_halvings
from methods.progressive import Weighting, halvings


def matching_loss(nets: Nets, batch: Batch, *, guidance_scale: tuple[float, float], weighting: Weighting) -> Losses:
    """Stage one: the student at w answers as the teacher guided by w (section 3.1)."""
    raise NotImplementedError("guided distillation declares its rounds, but its matching loss is not written yet")


def guided_progressive_loss(
    nets: Nets, batch: Batch, *, steps: int, guidance_scale: tuple[float, float], weighting: Weighting
) -> Losses:
    """Stage two: progressive distillation with w drawn per sample, an input of teacher and student (section 3.2)."""
    raise NotImplementedError("guided distillation declares its rounds, but its halving loss is not written yet")


@dataclass(frozen=True)
class Guided:
    """One matching round, then halvings.

    The paper's w in [2, 14] for latent models is a guidance scale in [3, 15] here, where 1 is none; for
    models in pixels it takes [1, 5].
    """

    teacher_steps: int = 512
    student_steps: int = 4
    guidance_scale: tuple[float, float] = (3.0, 15.0)
    weighting: Weighting = "truncated_snr"

    paper: ClassVar[str] = "2210.03142"
    space: ClassVar[Mapping[str, Range]] = {
        "teacher_steps": Choice((64, 256, 512)),
        "weighting": Choice(("truncated_snr", "snr_plus_one")),
    }

    def __post_init__(self) -> None:
        require_halvings(self.teacher_steps, self.student_steps)
        require_guidance_range(self.guidance_scale)

    def rounds(self) -> tuple[Round, ...]:
        """Matching, whose student is the teacher of the first halving."""
        drawn = {"guidance_scale": self.guidance_scale, "weighting": self.weighting}
        student = Trained(guidance_input=True)
        matching = Round(
            name="matching",
            updates=(Update("student", partial(matching_loss, **drawn)),),
            nets={"student": student},
            sources={"data": Source("data")},
        )
        halving = halvings(self.teacher_steps, self.student_steps, student, partial(guided_progressive_loss, **drawn))
        return (matching, *(replace(a_round, start="previous", teacher="previous") for a_round in halving))

    def sampler(self) -> Sampler:
        """DDIM, guidance as an input."""
        return Sampler("ddim", guidance="input")
