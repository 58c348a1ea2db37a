"""Judging a student while it is trained, on the workers themselves, as the best candidates of an evaluation are chosen.

The network that the round would end with is put into the pipeline that its export would have, and samples the noise and
the prompts that `baselines.choose` samples, none of which the final evaluation sees. Its KID to the teacher's samples
is a row of the round's metrics.jsonl: {"step": 200, "quality/kid@4": 0.0031}, for a student judged at 4 steps.
A search reads the rows as they come with `metrics.read(run.round_folder(number, round) / "metrics.jsonl")`, under
the name that `Exam.metric` (or `metric_of` a recipe) has; less is better.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fewstep.orchestrator.engines.rank import Place
from fewstep.orchestrator.evaluation.baselines import kids, target
from fewstep.orchestrator.evaluation.distances import units_of
from fewstep.orchestrator.evaluation.evaluator import Judge, unchecked
from fewstep.orchestrator.evaluation.evaluator_pool import judged_prompts, open_bench
from fewstep.orchestrator.evaluation.system import Measured, Setting, System
from fewstep.orchestrator.recipe.recipe import Recipe
from fewstep.orchestrator.students.export import dress
from fewstep.orchestrator.students.inference import call_of, fixed_guidance
from fewstep.orchestrator.students.round_result import StudentFacts, network_of
from fewstep.orchestrator.teachers.teacher import Teacher
from fewstep.orchestrator.training.divergence import Moments, moments, sums


@dataclass(frozen=True)
class Exam:
    """What a student is judged by; plain data, for Ray to carry."""

    setting: Setting
    system: System
    reference: Measured  # the teacher's samples at many steps

    @property
    def metric(self) -> str:
        """The key of what is found."""
        return f"quality/kid@{self.system.steps}"


@dataclass(frozen=True)
class Sampled:
    """What a student made: its KID to the teacher's, its latents, its pictures."""

    kid: float
    latents: Moments
    measured: Measured


class Scores:
    """What exams found by step, in their order; less is better."""

    def __init__(self, found: Sequence[tuple[int, float]] = ()) -> None:
        self.found = [(int(step), float(value)) for step, value in found]

    def add(self, step: int, value: float) -> None:
        """One more."""
        self.found.append((step, value))

    @property
    def best(self) -> int:
        """The step of the least; 0 where there is none."""
        return min(self.found, key=lambda one: one[1])[0] if self.found else 0

    @property
    def since_best(self) -> int:
        """How many came after the best."""
        return sum(step > self.best for step, _ in self.found)


def steps_of(recipe: Recipe) -> int:
    """The number of steps that the student is judged at while it is trained."""
    return recipe.training.evaluate_at or recipe.method.build().student_steps


def metric_of(recipe: Recipe) -> str:
    """The key of what an exam of this recipe finds."""
    return f"quality/kid@{steps_of(recipe)}"


def prepare(recipe: Recipe, out: Path) -> Exam:
    """Sample the teacher on the cluster, unless its samples are in `out` or come with the teacher."""
    told = recipe.evaluation
    with open_bench(recipe, judged_prompts(told), out, call=call_of(recipe)) as bench:
        (reference,) = bench.measure([target(told)], told.selection_samples, "sampling what the student is judged by")
    guidance_scale = fixed_guidance(recipe) or told.guidance_scale
    sampler = recipe.method.build().sampler().kind
    return Exam(bench.setting, System("student", sampler, steps_of(recipe), guidance_scale, "selection"), reference)


class Examiner:
    """One rank's part: every so manieth batch of the samples."""

    def __init__(self, exam: Exam, recipe: Recipe, teacher: Teacher, facts: StudentFacts, place: Place) -> None:
        self._exam, self._recipe, self._teacher, self._facts, self._place = exam, recipe, teacher, facts, place
        self._judge = Judge(replace(exam.setting, device=str(place.device)))
        self._judge.teacher = teacher

    def sample(self, state: Mapping[str, Tensor]) -> Sampled:
        """Judge a network of these weights; every rank calls it with the same, and gets the same."""
        network = network_of(self._facts, state, self._teacher)
        family = dress(self._recipe, self._teacher, network, self._facts)
        self._judge.student = unchecked(family)
        count, size = len(self._exam.reference.features), self._exam.setting.batch_size
        starts = range(0, count, size)[self._place.rank :: self._place.world_size]
        mine: dict[int, tuple[Measured, Tensor]] = {}
        states = last_states(family.pipeline.scheduler)
        for start in starts:
            measured = self._judge.measure(self._exam.system, range(start, min(start + size, count)))
            mine[start] = measured, sums(states.pop())
        del self._judge.student  # its memory is the training's again
        parts: list[dict[int, tuple[Measured, Tensor]]] = [{} for _ in range(self._place.world_size)]
        torch.distributed.all_gather_object(parts, mine)
        return self._place.told(self._together({start: part for some in parts for start, part in some.items()}))

    def _together(self, parts: Mapping[int, tuple[Measured, Tensor]]) -> Sampled:
        measured = Measured.join([parts[start][0] for start in sorted(parts)])
        units = units_of(len(measured.features), len(self._exam.setting.prompts))
        (kid,) = kids([self._exam.reference, measured], units)
        return Sampled(kid, moments(torch.stack([part[1] for part in parts.values()]).sum(0)), measured)


def last_states(scheduler: Any) -> list[Tensor]:
    """Where a scheduler leaves what its last step answered: a pipeline's clean latents, which not every one shows."""
    step, seen = scheduler.step, list[Tensor]()

    @functools.wraps(step)
    def watched(*arguments: Any, **options: Any) -> Any:
        answer = step(*arguments, **options)
        seen[:] = [answer[0]]
        return answer

    scheduler.step = watched
    return seen
