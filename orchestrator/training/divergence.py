"""Tells when training has gone wrong: by its losses and gradients, and by what the student makes."""

from __future__ import annotations

import math
import statistics
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from fewstep.methods.base import Round, Trained

WINDOW = 20  # reports that a running median is of
RUNAWAY = 10.0  # times the highest running median so far
REPORTS = 3  # in a row that must be so high: one may be chance
FAR = 5.0  # times as wide as the teacher's latents, or as narrow; their widths away from their mean
ALIKE = 0.2  # of the teacher's variety: with less, pictures of other noise are one picture to the eye
EVALUATIONS = 2  # in a row that must be so alike, after one that was not: few steps begin with blurs that are alike


@dataclass(frozen=True)
class LatentMoments:
    """Mean and standard deviation over all numbers of some latents."""

    mean: float
    std: float


@dataclass(frozen=True)
class Divergence:
    """What went wrong, and the last step at which it was still in order."""

    why: str
    good: int


class DivergenceMonitor:
    """Looks at every report of a round, and at every evaluation."""

    def __init__(self, round: Round, *, is_scaled: bool) -> None:
        """`is_scaled` says that losses are scaled, as for float16, where an infinite gradient is a step left out."""
        # A critic's loss may rest near zero for long and rise again; a denoiser's does not.
        self._names = [name for name, net in round.nets.items() if isinstance(net, Trained)]
        self._finite = ("loss/",) if is_scaled else ("loss/", "grad_norm/")
        self._recent = {name: deque[float](maxlen=WINDOW) for name in self._names}
        self._highest = dict.fromkeys(self._names, 0.0)
        self._streak = dict.fromkeys(self._names, 0)
        self._good_report = self._good_samples = 0
        self._was_varied, self._alike = False, 0

    def report(self, step: int, values: Mapping[str, float]) -> Divergence | None:
        """What is wrong with the means of a step's report."""
        for key, value in values.items():
            if key.startswith(self._finite) and not math.isfinite(value):
                return Divergence(f"{key} is {value}", self._good_report)
        for name in self._names:
            terms = [value for key, value in values.items() if key.startswith(f"loss/{name}/")]
            if terms and self._runs_away(name, abs(sum(terms))):
                why = f"the loss of {name} is {sum(terms):.4g}, {RUNAWAY:g} times its highest running median and more"
                return Divergence(f"{why}, {REPORTS} reports in a row", self._good_report)
        if not any(self._streak.values()):
            self._good_report = step
        return None

    def _runs_away(self, name: str, size: float) -> bool:
        recent = self._recent[name]
        if len(recent) == WINDOW and size > RUNAWAY * self._highest[name]:
            self._streak[name] += 1
            return self._streak[name] == REPORTS
        self._streak[name] = 0
        recent.append(size)
        if len(recent) == WINDOW:
            self._highest[name] = max(self._highest[name], statistics.median(recent))
        return False

    def samples(self, step: int, student: LatentMoments, teacher: LatentMoments, variety: float) -> Divergence | None:
        """What is wrong with what the student makes: its latents, or its variety, of which the teacher has 1."""
        is_near = abs(student.mean - teacher.mean) < FAR * teacher.std
        if not (is_near and teacher.std / FAR < student.std < FAR * teacher.std):  # also where they are not finite
            why = (
                f"the student's latents have mean {student.mean:.3g} and deviation {student.std:.3g}, "
                f"the teacher's {teacher.mean:.3g} and {teacher.std:.3g}"
            )
            return Divergence(why, self._good_samples)
        if variety >= ALIKE:
            self._good_samples, self._was_varied, self._alike = step, True, 0
            return None
        self._alike += self._was_varied
        if self._alike < EVALUATIONS:
            return None
        why = f"the student's pictures of different noise are alike: {variety:.3f} of the teacher's variety"
        return Divergence(f"{why}, {EVALUATIONS} evaluations in a row", self._good_samples)


def sums(latents: Tensor) -> Tensor:
    """How many numbers, their sum and that of their squares, in float64."""
    numbers = latents.double()
    return torch.stack([torch.tensor(float(numbers.numel())), numbers.sum().cpu(), (numbers**2).sum().cpu()])


def moments(sums: Tensor) -> LatentMoments:
    """Mean and deviation out of what `sums` counted, which adds up over batches and ranks."""
    count, total, squares = sums.tolist()
    mean = total / count
    return LatentMoments(mean, max(0.0, squares / count - mean**2) ** 0.5)
