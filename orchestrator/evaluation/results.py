"""Holds the numbers and claims of an evaluation, and says them in words for terminal, model card and report."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

FRECHET = ("FID", "Frechet distance")  # by Inception's features, and by any others
SAMPLES_FOR_A_CLAIM = 2000
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
        return min(self.steps, key=lambda steps: abs(steps - wanted))

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

    def headline(self, wanted: int) -> str:
        """One honest sentence about the student at the number of steps that it was made for."""
        steps = self.judged_steps(wanted)
        student, teacher = (self.find(system, steps, "KID") for system in ("student", "teacher"))
        half, beats = self.claim("half", steps), self.claim("beats", steps)
        at = f"{steps} step{'s' if steps > 1 else ''}"
        numbers = f"{self.kid} {student.value:.4f} against {teacher.value:.4f}"
        many, best = f"the teacher's {self.many_steps}-step pictures", f"the teacher's own best at {at}"
        if half.holds:
            says = f"At {at} the student is less than half as far from {many} as {best}: {numbers}, "
            says += f"{interval(half, 'KID(student) - 0.5 KID(teacher) =')}."
        elif beats.holds:
            says = f"At {at} the student is nearer to {many} than {best}: {numbers}, {interval(beats, 'difference')}."
        else:
            says = f"At {at} the student is not shown to be better than {best}: {numbers}, "
            says += f"{interval(beats, 'difference')}."
        return says if beats.is_claim else f"{says} {caution(beats.samples)}"


UNJUDGED = EvaluationResults((), ())


def interval(claim: Claim, what: str) -> str:
    """A difference with its interval."""
    return f"{what} {claim.value:+.4f}, 95 % interval [{claim.low:+.4f}, {claim.high:+.4f}]"


def caution(samples: int) -> str:
    """What has to be said where there are too few samples."""
    return f"This is an interval from {samples:,} samples and no claim, which would need {SAMPLES_FOR_A_CLAIM:,}."


def label(name: str, steps: int) -> str:
    """What a row of pictures is called."""
    return f"{name}, {steps} step{'s' if steps > 1 else ''}"
