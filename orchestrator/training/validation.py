"""Validates a student while it is trained, on the workers themselves, as an evaluation chooses its best candidates.

The network that the round would end with is put into the pipeline that its export would have, and samples the noise and
the prompts that `baselines.choose` samples, none of which the final evaluation sees. Its KID to the teacher's samples
is a row of the round's metrics.jsonl: {"step": 200, "quality/kid@4": 0.0031}, for a student of 4 steps.
A search reads the rows as they come with `metrics.read(run.round_folder(number, round) / "metrics.jsonl")`, under
the name that `ValidationSpec.metric` (or `metric_of` a recipe) has; less is better.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping
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
    """What a student is compared with, and how it is sampled; plain data, for Ray to carry."""

    setting: EvaluationSetting
    system: System
    reference: SampleFeatures  # the teacher's samples at many steps

    @property
    def metric(self) -> str:
        """The key of the score in metrics.jsonl."""
        return f"quality/kid@{self.system.steps}"


@dataclass(frozen=True)
class ValidationSamples:
    """What a student made: its KID to the teacher's, its latents, its pictures."""

    kid: float
    latents: LatentMoments
    measured: SampleFeatures


class ScoreHistory:
    """The score of each validation by step, in their order; less is better."""

    def __init__(self, scores: Iterable[tuple[int, float]] = ()) -> None:
        self.scores = list(scores)

    def add(self, step: int, score: float) -> None:
        """Append the score of one more validation."""
        self.scores.append((step, score))

    @property
    def best(self) -> int:
        """The step of the least score; 0 where there is none."""
        return min(self.scores, key=lambda entry: entry[1])[0] if self.scores else 0

    @property
    def since_best(self) -> int:
        """How many validations came after the best."""
        return sum(step > self.best for step, _ in self.scores)


def steps_of(recipe: Recipe) -> int:
    """The number of steps that the student is sampled with while it is trained."""
    return recipe.training.evaluate_at or recipe.method.build().student_steps


def metric_of(recipe: Recipe) -> str:
    """The key of the score in metrics.jsonl, for a student of this recipe."""
    return f"quality/kid@{steps_of(recipe)}"


def prepare(recipe: Recipe, out: Path) -> ValidationSpec:
    """Sample the teacher on the cluster, unless its samples are in `out` or come with the teacher."""
    evaluation = recipe.evaluation
    with open_pool(recipe, evaluation_prompts(evaluation), out, call=inference_arguments(recipe)) as pool:
        (reference,) = pool.measure(
            [selection_reference(evaluation)], evaluation.selection_samples, "sampling what the student is judged by"
        )
    guidance_scale = fixed_guidance(recipe) or evaluation.guidance_scale
    sampler = recipe.method.build().sampler().kind
    system = System("student", sampler, steps_of(recipe), guidance_scale, "selection")
    return ValidationSpec(pool.setting, system, reference)


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
