"""InstaFlow: guided, text-conditioned reflow, then one step distilled from the straightened model.

Liu et al., "InstaFlow: One Step is Enough", arXiv:2309.06380.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from fewstep.methods.base import Round, Sampler, Source
from fewstep.methods.reflow import distillation, reflows
from fewstep.methods.search_space import Choice, Range, Uniform
from fewstep.methods.validation import require, require_at_least, require_decay


@dataclass(frozen=True)
class InstaFlow:
    """Reflow rounds on the guided teacher's pairs, then distillation on new pairs of the last reflow.

    Those are sampled with the guidance of velocities, v = u + w (c - u), and distilled by L2 first, then by the
    perceptual distance, which is LPIPS in the paper.
    """

    student_steps: int = 1
    num_reflows: int = 1
    num_inference_steps: int = 25  # of the pairs
    guidance_scale: float = 6.0  # of the teacher's pairs
    flow_guidance_scale: float = 1.5  # of the straightened model's pairs
    perceptual_after: int | None = 21_500  # step of distillation where the perceptual loss replaces L2; null is never
    ema_decay: float = 0.9999  # for runs of 1e4 steps and more; 0.999 suits a few thousand
    time_min: float = 1e-3

    paper: ClassVar[str] = "2309.06380"
    space: ClassVar[Mapping[str, Range]] = {
        "ema_decay": Choice((0.999, 0.9999)),
        "flow_guidance_scale": Uniform(1.0, 2.0),
    }

    def __post_init__(self) -> None:
        require_at_least(1, student_steps=self.student_steps, num_reflows=self.num_reflows)
        require_at_least(1, num_inference_steps=self.num_inference_steps)
        require_at_least(1, guidance_scale=self.guidance_scale, flow_guidance_scale=self.flow_guidance_scale)
        require_decay(ema_decay=self.ema_decay)
        require_at_least(0, perceptual_after=self.perceptual_after or 0)
        require(0 <= self.time_min < 1, f"time_min must be in [0, 1), got {self.time_min:g}")

    def rounds(self) -> tuple[Round, ...]:
        """Reflows, then distillation."""
        pairs, straightened = self._pairs(self.guidance_scale), self._pairs(self.flow_guidance_scale)
        return (
            *reflows(self.num_reflows, self.ema_decay, self.time_min, pairs, straightened),
            distillation(self.ema_decay, straightened, self.perceptual_after),
        )

    def _pairs(self, guidance_scale: float) -> Source:
        return Source("pairs", self.num_inference_steps, guidance_scale=(guidance_scale, guidance_scale))

    def sampler(self) -> Sampler:
        """Euler along the flow, guidance already inside."""
        return Sampler("euler")
