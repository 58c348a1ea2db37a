"""How good a trial's student is, on noise and prompts that choices are made by and no result is quoted of."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from fewstep.orchestrator.evaluation.baselines import kids, student_scales, target
from fewstep.orchestrator.evaluation.distances import units_of
from fewstep.orchestrator.evaluation.evaluator_pool import judged_prompts, open_bench
from fewstep.orchestrator.evaluation.system import System
from fewstep.orchestrator.recipe.recipe import Recipe
from fewstep.orchestrator.students.inference import call_of, fixed_guidance

SELECTION = "selection"  # folder of a search: what trials are chosen by


def measure_target(recipe: Recipe, out: Path) -> None:
    """Sample the teacher at many steps, once for all trials: to a folder that is their `evaluation.baselines`."""
    told = recipe.evaluation
    with open_bench(recipe, judged_prompts(told), out / "work") as bench:
        bench.measure([target(told)], told.selection_samples, "sampling what trials are chosen by")
        bench.files.ship(bench.key(target(told)), out)


def judge_trial(recipe: Recipe, student: Path, steps: Sequence[int], out: Path) -> dict[int, float]:
    """The KID of an exported student at each number of steps, at its best guidance scale where that is an input."""
    told = recipe.evaluation
    sampler = json.loads((student / "scheduler" / "scheduler_config.json").read_text())["_class_name"]
    scales = student_scales(told, fixed_guidance(recipe))
    systems = [System("student", sampler, count, scale, "selection") for count in steps for scale in scales]
    prompts = judged_prompts(told)
    with open_bench(recipe, prompts, out, str(student), call_of(recipe)) as bench:
        parts = bench.measure([target(told), *systems], told.selection_samples, "judging a trial")
    found = kids(parts, units_of(told.selection_samples, len(prompts)))
    return {
        count: min(kid for system, kid in zip(systems, found, strict=True) if system.steps == count) for count in steps
    }
