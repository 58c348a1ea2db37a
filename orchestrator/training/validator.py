"""Samples and scores a student on the ranks that train it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from operator import itemgetter

import torch
from torch import Tensor

from fewstep.orchestrator.engines.rank import Rank
from fewstep.orchestrator.evaluation.baselines import kids
from fewstep.orchestrator.evaluation.distances import Features, Resampling, precision_and_recall, units_of, variety
from fewstep.orchestrator.evaluation.evaluator import Evaluator, without_safety_checker
from fewstep.orchestrator.evaluation.last_answer import last_answer
from fewstep.orchestrator.evaluation.results import LOOKS
from fewstep.orchestrator.evaluation.system import VARIETY, SampleFeatures, System
from fewstep.orchestrator.families.family import Family
from fewstep.orchestrator.recipe.recipe import Recipe
from fewstep.orchestrator.students.pipeline import student_pipeline
from fewstep.orchestrator.students.round_result import StudentSpec, network_of
from fewstep.orchestrator.teachers.teacher import Teacher
from fewstep.orchestrator.training.divergence import LatentMoments, moments, sums
from fewstep.orchestrator.training.validation import ValidationSpec


@dataclass(frozen=True)
class ValidationSamples:
    """What a student made: how good it is as metrics.jsonl names it, its variety, its latents, its pictures."""

    quality: Mapping[str, float]
    variety: float  # of which the teacher has 1
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
        judged, latents = self._measure(family, self._spec.system, len(self._spec.reference.features))
        varied, _ = self._measure(family, replace(self._spec.system, noise="variety"), len(self._spec.varied.features))
        del self._evaluator.student  # its memory is the training's again
        return self._rank.broadcast(self._score(judged, varied, latents))

    def _measure(self, family: Family, system: System, count: int) -> tuple[SampleFeatures, LatentMoments]:
        """`count` samples, made by all ranks and known to all of them, and the moments of their clean latents."""
        size, mine = self._spec.setting.batch_size, dict[int, tuple[SampleFeatures, Tensor]]()
        with last_answer(family.pipeline.scheduler, "step") as states:  # which not every pipeline answers with
            for start in range(0, count, size)[self._rank.index :: self._rank.world_size]:
                measured = self._evaluator.measure(system, range(start, min(start + size, count)))
                mine[start] = measured, sums(states[0])
        ranks: list[dict[int, tuple[SampleFeatures, Tensor]]] = [{} for _ in range(self._rank.world_size)]
        torch.distributed.all_gather_object(ranks, mine)
        batches = [batch for _, batch in sorted((entry for each in ranks for entry in each.items()), key=itemgetter(0))]
        latents = moments(torch.stack([sums for _, sums in batches]).sum(0))
        return SampleFeatures.join([measured for measured, _ in batches]), latents

    def _score(self, judged: SampleFeatures, varied: SampleFeatures, latents: LatentMoments) -> ValidationSamples:
        spec = self._spec
        units = units_of(len(judged.features), len(spec.setting.prompts))
        resampling = Resampling(int(units.max()) + 1, 0, 0, seed=0)
        mine, its = (Features(samples.features, units) for samples in (judged, spec.reference))
        precision, recall = precision_and_recall(mine, its, resampling)
        prompts = Resampling(len(varied.features) // VARIETY, 0, 0, seed=0)
        spread = variety(varied.features, spec.varied.features, VARIETY, prompts)
        (kid,) = kids([spec.reference.features, judged.features], units)
        numbers = {"kid": kid, "precision": precision.value, "recall": recall.value, "variety": spread.value}
        numbers |= zip(LOOKS, judged.appearance.mean(0).tolist(), strict=True)
        quality = {f"quality/{name}@{spec.system.steps}": value for name, value in numbers.items()}
        return ValidationSamples(quality, spread.value, latents, judged)
