"""Consistency distillation: every point of the teacher's ODE maps to its end.

Song et al., "Consistency Models", arXiv:2303.01469.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import ClassVar, Literal

from methods.base import (
    Averaged,
    Batch,
    Choice,
    Frozen,
    Losses,
    Net,
    Nets,
    Range,
    Round,
    Sampler,
    Source,
    Trained,
    Update,
)
from methods.checks import require, require_at_least, require_decay

Metric = Literal["lpips", "l1", "l2"]


def consistency_loss(nets: Nets, batch: Batch, *, grid: int, metric: Metric) -> Losses:
    """Algorithm 2: d(f(x_t, t), f_target(x_s, s)), x_s one Heun step of the teacher before x_t."""
    raise NotImplementedError("consistency distillation declares its round, but its loss is not written yet")


@dataclass(frozen=True)
class Consistency:
    """The target is a close average of the student; a slower one is sampled. ImageNet's setting (table 3)."""

    student_steps: int = 2
    grid: int = 40
    metric: Metric = "lpips"
    ema_decay: float = 0.95  # of the target
    sampling_ema_decay: float = 0.999943  # for the paper's 6e5 steps; 0.999 suits a few thousand

    paper: ClassVar[str] = "2303.01469"
    space: ClassVar[Mapping[str, Range]] = {
        "ema_decay": Choice((0.0, 0.9, 0.95, 0.99)),
        "grid": Choice((10, 18, 40, 80)),
        "metric": Choice(("lpips", "l1", "l2")),
        "sampling_ema_decay": Choice((0.999, 0.9999, 0.999943)),
    }

    def __post_init__(self) -> None:
        require_at_least(1, student_steps=self.student_steps)
        require_at_least(2, grid=self.grid)
        require(
            self.student_steps < self.grid, f"student_steps must be below grid={self.grid}, got {self.student_steps}"
        )
        require_decay(ema_decay=self.ema_decay, sampling_ema_decay=self.sampling_ema_decay)

    def rounds(self) -> tuple[Round, ...]:
        """One round on real data, with the teacher's ODE step."""
        nets: dict[str, Net] = {
            "student": Trained(),
            "target": Averaged(decay=self.ema_decay),
            "average": Averaged(decay=self.sampling_ema_decay),
        }
        if self.metric == "lpips":
            nets |= {"decoder": Frozen("decoder"), "perceptual": Frozen("perceptual")}
        update = Update("student", partial(consistency_loss, grid=self.grid, metric=self.metric))
        return (Round("consistency", (update,), nets, {"data": Source("data")}, result="average"),)

    def sampler(self) -> Sampler:
        """Multistep consistency sampling."""
        return Sampler("renoising", grid=self.grid)
