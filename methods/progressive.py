"""Progressive distillation: one student step does what two teacher steps did, again and again.

Salimans and Ho, "Progressive Distillation for Fast Sampling of Diffusion Models", arXiv:2202.00512.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import ClassVar, Literal

from methods.base import Batch, Choice, Losses, Nets, Range, Round, Sampler, Source, Trained, Update
from methods.checks import require_halvings

Weighting = Literal["truncated_snr", "snr_plus_one"]


def progressive_loss(nets: Nets, batch: Batch, *, steps: int, weighting: Weighting) -> Losses:
    """Algorithm 2: the student's x_0 must lead in one step to where the teacher's two half steps lead."""
    raise NotImplementedError("progressive distillation declares its rounds, but its loss is not written yet")


def halvings(
    teacher_steps: int, student_steps: int, student: Trained, loss: Callable[..., Losses]
) -> tuple[Round, ...]:
    """One round per halving, each taught by the one before it; the first by the base.

    `loss` takes the round's number of student steps as `steps`. The last two halvings, to 2 steps and to 1,
    are the hard ones and train twice as long (section 5).
    """
    rounds: list[Round] = []
    steps = teacher_steps // 2
    while steps >= student_steps:
        before = "previous" if rounds else "base"
        rounds.append(
            Round(
                name=f"{2 * steps}-to-{steps}",
                updates=(Update("student", partial(loss, steps=steps)),),
                nets={"student": student},
                sources={"data": Source("data")},
                start=before,
                teacher=before,
                length=2.0 if steps <= 2 else 1.0,
                anneal=True,
            )
        )
        steps //= 2
    return tuple(rounds)


@dataclass(frozen=True)
class Progressive:
    """Halve the number of DDIM steps until few remain; no averages, and the learning rate falls in each round."""

    teacher_steps: int = 1024
    student_steps: int = 4
    weighting: Weighting = "truncated_snr"

    paper: ClassVar[str] = "2202.00512"
    space: ClassVar[Mapping[str, Range]] = {
        "teacher_steps": Choice((64, 256, 1024)),
        "weighting": Choice(("truncated_snr", "snr_plus_one")),
    }

    def __post_init__(self) -> None:
        require_halvings(self.teacher_steps, self.student_steps)

    def rounds(self) -> tuple[Round, ...]:
        """log2(teacher_steps / student_steps) halvings."""
        loss = partial(progressive_loss, weighting=self.weighting)
        return halvings(self.teacher_steps, self.student_steps, Trained(), loss)

    def sampler(self) -> Sampler:
        """DDIM, guidance composed as the teacher's is."""
        return Sampler("ddim", guidance="composed")
