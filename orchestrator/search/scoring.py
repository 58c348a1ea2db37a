"""How good a trial's student is, on noise and prompts that choices are made by and no result is quoted of."""

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
    told = recipe.evaluation
    with open_pool(recipe, evaluation_prompts(told), out / "work") as pool:
        pool.measure([selection_reference(told)], told.selection_samples, "sampling what trials are chosen by")
        pool.files.ship(pool.key(selection_reference(told)), out)


def judge_trial(recipe: Recipe, student: Path, steps: Sequence[int], out: Path) -> dict[int, float]:
    """The KID of an exported student at each number of steps, at its best guidance scale where that is an input."""
    told = recipe.evaluation
    sampler = json.loads((student / "scheduler" / "scheduler_config.json").read_text())["_class_name"]
    scales = student_scales(told, fixed_guidance(recipe))
    systems = [System("student", sampler, count, scale, "selection") for count in steps for scale in scales]
    prompts = evaluation_prompts(told)
    with open_pool(recipe, prompts, out, str(student), inference_arguments(recipe)) as pool:
        parts = pool.measure([selection_reference(told), *systems], told.selection_samples, "judging a trial")
    found = kids(parts, units_of(told.selection_samples, len(prompts)))
    return {
        count: min(kid for system, kid in zip(systems, found, strict=True) if system.steps == count) for count in steps
    }
