"""Holds the numbers and claims of an evaluation, and says them in words for terminal, model card and report."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

FRECHET = ("FID", "Frechet distance")  # by Inception's features, and by any others
SAMPLES_FOR_A_CLAIM = 2000
DIVERSITY = ("precision", "recall", "variety")
LOOKS = ("clipped", "saturation", "contrast", "brightness")  # of pictures, as `appearance` measures them
LEAST_SHARE = 0.5  # of what the teacher has of DIVERSITY
LOOKS_SHARE, LOOKS_MARGIN = 0.25, 0.02  # of the teacher's looks, and besides, that the student's may be apart
Reference = Literal["teacher", "images", "statistics"]


@dataclass(frozen=True)
class Row:
    """One number of metrics.json. A metric without an interval has its value at both ends."""

    system: str
    sampler: str
    steps: int
    guidance_scale: float
    metric: str  # names the feature network
    features: str
    reference: Reference
    value: float
    low: float
    high: float
    samples: int
    seconds_per_image: float


@dataclass(frozen=True)
class Claim:
    """A paired difference and what it says. With too few samples it is an interval, and no claim."""

    claim: str
    kind: Literal["beats", "half", "level"]
    steps: int
    reference: Reference
    value: float
    low: float
    high: float
    holds: bool
    samples: int
    is_claim: bool
    times: float = 0.0  # nearer than what it is compared with, by the whole interval
    withheld: str = ""  # what speaks against it, whatever the interval


@dataclass(frozen=True)
class EvaluationResults:
    """The rows and claims of an evaluation, by the questions that people ask of them."""

    rows: Sequence[Row]
    claims: Sequence[Claim]

    @staticmethod
    def read(evaluation: Path) -> EvaluationResults:
        """What an evaluation wrote to its folder."""
        rows, claims = (json.loads((evaluation / name).read_text()) for name in ("metrics.json", "claims.json"))
        return EvaluationResults([Row(**row) for row in rows], [Claim(**claim) for claim in claims])

    @property
    def kid(self) -> str:
        """KID by the name that its rows have."""
        return next(row.metric for row in self.rows if row.metric.startswith("KID"))

    @property
    def many_steps(self) -> int:
        """The steps of the teacher that all are compared with."""
        return max(row.steps for row in self.rows if row.system == "teacher")

    @property
    def steps(self) -> list[int]:
        """The numbers of steps that the student was judged at."""
        return sorted({row.steps for row in self.rows if row.system == "student"})

    @property
    def references(self) -> list[str]:
        """What was compared with: the teacher, and real images where there are any."""
        return list(dict.fromkeys(row.reference for row in self.rows if row.metric == self.kid))

    def measured(self, metric: str, reference: str = "teacher") -> bool:
        """Whether there are rows of a metric."""
        return any(row.reference == reference and row.metric.startswith(metric) for row in self.rows)

    def judged_steps(self, wanted: int) -> int:
        """The number of steps nearest to what the student was made for."""
        return nearest_steps(self.steps, wanted)

    def find(self, system: str, steps: int, metric: str, reference: str = "teacher") -> Row:
        """One row by the start of its metric's name."""
        return next(
            row
            for row in self.rows
            if (row.system, row.steps, row.reference) == (system, steps, reference) and row.metric.startswith(metric)
        )

    def claim(self, kind: str, steps: int, reference: str = "teacher") -> Claim:
        """The one claim of this kind. Raises StopIteration where there is none."""
        return next(c for c in self.claims if (c.kind, c.steps, c.reference) == (kind, steps, reference))

    def quality(self) -> dict[str, float]:
        """The student's numbers by the teacher at many steps, named as in the metrics registry: quality/kid@4."""
        return {
            f"quality/{row.metric.partition(' (')[0].lower()}@{row.steps}": row.value
            for row in self.rows
            if (row.system, row.reference) == ("student", "teacher")
        }

    def objections(self, steps: int) -> list[str]:
        """What eyes would object to in the student's pictures, which no distance between features makes up for.

        Less than half of the precision, recall or variety that the teacher's own pictures at many steps have among
        themselves; or looks that are more than a quarter and 0.02 apart from theirs.
        """
        objections = []
        for metric in filter(self.measured, (*DIVERSITY, *LOOKS)):
            mine = self.find("student", steps, metric).value
            its = self.find("teacher", self.many_steps, metric).value
            apart = mine - its if metric == "clipped" else abs(mine - its)
            is_too_far = mine < LEAST_SHARE * its if metric in DIVERSITY else apart > LOOKS_SHARE * its + LOOKS_MARGIN
            if is_too_far:
                objections.append(f"{metric} {mine:.3f}, where the teacher's {self.many_steps} steps have {its:.3f}")
        return objections

    def headline(self, wanted: int) -> str:
        """What was gained at the number of steps that the student was made for, in one honest sentence or two."""
        steps = self.judged_steps(wanted)
        student, teacher = (self.find(system, steps, "KID") for system in ("student", "teacher"))
        many, beats, at = self.find("teacher", self.many_steps, "KID"), self.claim("beats", steps), counted(steps)
        numbers = f"{self.kid} {student.value:.4f} against {teacher.value:.4f}"
        pictures, best = f"the teacher's {self.many_steps}-step pictures", f"the teacher's own best at {at}"
        speed = many.seconds_per_image / student.seconds_per_image
        if beats.withheld and beats.high < 0:
            says = f"At {at} the student is not called better than {best}, whatever its KID: {beats.withheld}."
        elif beats.holds:
            nearer = f"at least {_rounded_down(beats.times)} times nearer" if beats.times >= 1.1 else "nearer"
            says = f"At {at} the student is {nearer} to {pictures} than {best}"
            says += f", and {speed:.3g} times as fast as those {self.many_steps}: {numbers}."
        else:
            says = f"At {at} the student is not shown to be better than {best}: {numbers}, "
            says += f"difference {beats.value:+.4f}, 95 % interval [{beats.low:+.4f}, {beats.high:+.4f}]."
        return says if beats.is_claim else f"{says} {caution(beats.samples)}"


UNJUDGED = EvaluationResults((), ())


def nearest_steps(judged: Sequence[int], wanted: int) -> int:
    """Of the numbers of steps that a student is judged at, the one nearest to what it was made for."""
    return min(judged, key=lambda steps: abs(steps - wanted))


def caution(samples: int) -> str:
    """What has to be said where there are too few samples."""
    return f"This is an interval from {samples:,} samples and no claim, which would need {SAMPLES_FOR_A_CLAIM:,}."


def label(name: str, steps: int) -> str:
    """What a row of pictures is called."""
    return f"{name}, {counted(steps)}"


def counted(steps: int) -> str:
    """A number of steps in words."""
    return f"{steps} step{'s' if steps > 1 else ''}"


def _rounded_down(times: float) -> str:
    """To two digits, so that the interval supports what is said."""
    unit = 10 ** (math.floor(math.log10(times)) - 1)
    return f"{math.floor(times / unit + 1e-9) * unit:.6g}"
