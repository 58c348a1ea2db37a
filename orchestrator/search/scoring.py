"""Measures how good a trial's student is, on noise and prompts that serve choices alone and give no result."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from fewstep.orchestrator.evaluation.baselines import kids, selection_reference, student_scales
from fewstep.orchestrator.evaluation.distances import units_of
from fewstep.orchestrator.evaluation.evaluator_pool import evaluation_prompts, open_pool
from fewstep.orchestrator.evaluation.system import System
from fewstep.orchestrator.recipe.recipe import Recipe
from fewstep.orchestrator.students.inference import fixed_guidance, inference_arguments

SELECTION = "selection"  # folder of a search: what trials are chosen by


def measure_target(recipe: Recipe, out: Path) -> None:
    """Sample the teacher at many steps, once for all trials: to a folder that is their `evaluation.baselines`."""
    evaluation = recipe.evaluation
    reference, count = selection_reference(evaluation), evaluation.selection_samples
    with open_pool(recipe, evaluation_prompts(evaluation), out / "work") as pool:
        pool.measure([reference], count, "sampling what trials are chosen by")
        pool.files.ship(pool.key(reference), out)


def judge_trial(recipe: Recipe, student: Path, steps: Sequence[int], out: Path) -> dict[int, float]:
    """The KID of an exported student at each number of steps, at its best guidance scale where that is an input."""
    evaluation = recipe.evaluation
    sampler = json.loads((student / "scheduler" / "scheduler_config.json").read_text())["_class_name"]
    scales = student_scales(evaluation, fixed_guidance(recipe))
    systems = [System("student", sampler, each, scale, "selection") for each in steps for scale in scales]
    prompts, count = evaluation_prompts(evaluation), evaluation.selection_samples
    with open_pool(recipe, prompts, out, str(student), inference_arguments(recipe)) as pool:
        samples = pool.measure([selection_reference(evaluation), *systems], count, "judging a trial")
    distances = dict(zip(systems, kids([one.features for one in samples], units_of(count, len(prompts))), strict=True))
    return {each: min(kid for system, kid in distances.items() if system.steps == each) for each in steps}
