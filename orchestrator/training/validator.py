"""Samples and scores a student on the ranks that train it."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from fewstep.orchestrator.engines.rank import Rank
from fewstep.orchestrator.evaluation.baselines import kids
from fewstep.orchestrator.evaluation.distances import units_of
from fewstep.orchestrator.evaluation.evaluator import Evaluator, without_safety_checker
from fewstep.orchestrator.evaluation.system import SampleFeatures
from fewstep.orchestrator.recipe.recipe import Recipe
from fewstep.orchestrator.students.pipeline import student_pipeline
from fewstep.orchestrator.students.round_result import StudentSpec, network_of
from fewstep.orchestrator.teachers.teacher import Teacher
from fewstep.orchestrator.training.divergence import LatentMoments, moments, sums
from fewstep.orchestrator.training.validation import ValidationSpec


@dataclass(frozen=True)
class ValidationSamples:
    """What a student made: its KID to the teacher's, its latents, its pictures."""

    kid: float
    latents: LatentMoments
    measured: SampleFeatures


class Validator:
    """Samples the student on one rank, which takes every so manieth batch, and scores it on all of them together."""

    def __init__(self, spec: ValidationSpec, recipe: Recipe, teacher: Teacher, facts: StudentSpec, rank: Rank) -> None:
        self._spec, self._recipe, self._rank = spec, recipe, rank
        self._teacher, self._facts = teacher, facts
        self._evaluator = Evaluator(replace(spec.setting, device=str(rank.device)))
        self._evaluator.teacher = teacher

    def sample(self, state: Mapping[str, Tensor]) -> ValidationSamples:
        """Sample and score a network of these weights; every rank calls it with the same, and gets the same."""
        network = network_of(self._facts, state, self._teacher)
        family = student_pipeline(self._recipe, self._teacher, network, self._facts)
        self._evaluator.student = without_safety_checker(family)
        count, size = len(self._spec.reference.features), self._spec.setting.batch_size
        starts = range(0, count, size)[self._rank.index :: self._rank.world_size]
        mine: dict[int, tuple[SampleFeatures, Tensor]] = {}
        states = last_states(family.pipeline.scheduler)
        for start in starts:
            measured = self._evaluator.measure(self._spec.system, range(start, min(start + size, count)))
            mine[start] = measured, sums(states.pop())
        del self._evaluator.student  # its memory is the training's again
        ranks: list[dict[int, tuple[SampleFeatures, Tensor]]] = [{} for _ in range(self._rank.world_size)]
        torch.distributed.all_gather_object(ranks, mine)
        return self._rank.broadcast(self._score({start: batch for each in ranks for start, batch in each.items()}))

    def _score(self, batches: Mapping[int, tuple[SampleFeatures, Tensor]]) -> ValidationSamples:
        measured = SampleFeatures.join([batches[start][0] for start in sorted(batches)])
        units = units_of(len(measured.features), len(self._spec.setting.prompts))
        (kid,) = kids([self._spec.reference, measured], units)
        return ValidationSamples(
            kid, moments(torch.stack([latents for _, latents in batches.values()]).sum(0)), measured
        )


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
