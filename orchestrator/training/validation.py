"""Validates a student while it is trained, on the workers themselves, as an evaluation chooses its best candidates.

The network that the round would end with is put into the pipeline that its export would have, and samples the noise and
the prompts that `baselines.choose` samples, none of which the final evaluation sees. Its KID to the teacher's samples
is in a row of the round's metrics.jsonl, {"step": 200, "quality/kid@4": 0.0031, ...}, for a student of 4 steps; beside
it is what an evaluation says of what eyes see: precision, recall, variety and looks.
A search reads the rows as they come with `metrics.read(run.round_folder(number, round) / "metrics.jsonl")`, under
the name that `ValidationSpec.metric` (or `metric_of` a recipe) has; less is better.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from fewstep.orchestrator.evaluation.baselines import measure_variety, selection_reference
from fewstep.orchestrator.evaluation.evaluator_pool import evaluation_prompts, open_pool
from fewstep.orchestrator.evaluation.system import EvaluationSetting, SampleFeatures, System
from fewstep.orchestrator.recipe.recipe import Recipe
from fewstep.orchestrator.students.inference import fixed_guidance, inference_arguments


@dataclass(frozen=True)
class ValidationSpec:
    """What a student is compared with, and how it is sampled; plain data, for Ray to carry."""

    setting: EvaluationSetting
    system: System
    reference: SampleFeatures  # the teacher's samples at many steps
    varied: SampleFeatures  # and of a few prompts, several of each

    @property
    def metric(self) -> str:
        """The key of the score in metrics.jsonl."""
        return f"quality/kid@{self.system.steps}"


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
        many = selection_reference(evaluation)
        (reference,) = pool.measure([many], evaluation.selection_samples, "sampling what the student is judged by")
        varied = measure_variety(pool, [many])[many]
    guidance_scale = fixed_guidance(recipe) or evaluation.guidance_scale
    sampler = recipe.method.build().sampler().kind
    system = System("student", sampler, steps_of(recipe), guidance_scale, "selection")
    return ValidationSpec(pool.setting, system, reference, varied)
