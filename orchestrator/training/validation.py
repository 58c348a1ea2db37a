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

from fewstep.orchestrator.engines.rank import Rank
from fewstep.orchestrator.evaluation.baselines import kids, selection_reference
from fewstep.orchestrator.evaluation.distances import units_of
from fewstep.orchestrator.evaluation.evaluator import Evaluator, without_safety_checker
from fewstep.orchestrator.evaluation.evaluator_pool import evaluation_prompts, open_pool
from fewstep.orchestrator.evaluation.system import EvaluationSetting, SampleFeatures, System
from fewstep.orchestrator.recipe.recipe import Recipe
from fewstep.orchestrator.students.export import student_pipeline
from fewstep.orchestrator.students.inference import fixed_guidance, inference_arguments
from fewstep.orchestrator.students.round_result import StudentSpec, network_of
from fewstep.orchestrator.teachers.teacher import Teacher
from fewstep.orchestrator.training.divergence import LatentMoments, moments, sums


@dataclass(frozen=True)
class ValidationSpec:
    """What a student is judged by; plain data, for Ray to carry."""

    setting: EvaluationSetting
    system: System
    reference: SampleFeatures  # the teacher's samples at many steps

    @property
    def metric(self) -> str:
        """The key of what is found."""
        return f"quality/kid@{self.system.steps}"


@dataclass(frozen=True)
class ValidationSamples:
    """What a student made: its KID to the teacher's, its latents, its pictures."""

    kid: float
    latents: LatentMoments
    measured: SampleFeatures


class ScoreHistory:
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


def prepare(recipe: Recipe, out: Path) -> ValidationSpec:
    """Sample the teacher on the cluster, unless its samples are in `out` or come with the teacher."""
    told = recipe.evaluation
    with open_pool(recipe, evaluation_prompts(told), out, call=inference_arguments(recipe)) as pool:
        (reference,) = pool.measure(
            [selection_reference(told)], told.selection_samples, "sampling what the student is judged by"
        )
    guidance_scale = fixed_guidance(recipe) or told.guidance_scale
    sampler = recipe.method.build().sampler().kind
    return ValidationSpec(
        pool.setting, System("student", sampler, steps_of(recipe), guidance_scale, "selection"), reference
    )


class Validator:
    """One rank's part: every so manieth batch of the samples."""

    def __init__(self, spec: ValidationSpec, recipe: Recipe, teacher: Teacher, facts: StudentSpec, place: Rank) -> None:
        self._spec, self._recipe, self._teacher, self._facts, self._place = (
            spec,
            recipe,
            teacher,
            facts,
            place,
        )
        self._evaluator = Evaluator(replace(spec.setting, device=str(place.device)))
        self._evaluator.teacher = teacher

    def sample(self, state: Mapping[str, Tensor]) -> ValidationSamples:
        """Judge a network of these weights; every rank calls it with the same, and gets the same."""
        network = network_of(self._facts, state, self._teacher)
        family = student_pipeline(self._recipe, self._teacher, network, self._facts)
        self._evaluator.student = without_safety_checker(family)
        count, size = len(self._spec.reference.features), self._spec.setting.batch_size
        starts = range(0, count, size)[self._place.rank :: self._place.world_size]
        mine: dict[int, tuple[SampleFeatures, Tensor]] = {}
        states = last_states(family.pipeline.scheduler)
        for start in starts:
            measured = self._evaluator.measure(self._spec.system, range(start, min(start + size, count)))
            mine[start] = measured, sums(states.pop())
        del self._evaluator.student  # its memory is the training's again
        parts: list[dict[int, tuple[SampleFeatures, Tensor]]] = [{} for _ in range(self._place.world_size)]
        torch.distributed.all_gather_object(parts, mine)
        return self._place.broadcast(self._together({start: part for some in parts for start, part in some.items()}))

    def _together(self, parts: Mapping[int, tuple[SampleFeatures, Tensor]]) -> ValidationSamples:
        measured = SampleFeatures.join([parts[start][0] for start in sorted(parts)])
        units = units_of(len(measured.features), len(self._spec.setting.prompts))
        (kid,) = kids([self._spec.reference, measured], units)
        return ValidationSamples(kid, moments(torch.stack([part[1] for part in parts.values()]).sum(0)), measured)


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
