"""What the noise between the steps of a TCD student changes: KID to its teacher's many steps, by gamma and steps.

python gammas.py RECIPE STUDENT WORK [FIELD=VALUE...]     # WORK keeps what was measured
"""

from __future__ import annotations

import sys
from pathlib import Path

from fewstep.orchestrator.evaluation.baselines import kids, many_steps
from fewstep.orchestrator.evaluation.distances import units_of
from fewstep.orchestrator.evaluation.evaluator_pool import evaluation_prompts, open_pool
from fewstep.orchestrator.evaluation.system import System
from fewstep.orchestrator.recipe.parsing import load
from fewstep.orchestrator.students.inference import InferenceArguments

GAMMAS = (0.0, 0.3)


def main(recipe_file: str, student: str, work: Path, overrides: list[str]) -> None:
    """Measure and print."""
    recipe = load(recipe_file, overrides)
    evaluation, prompts = recipe.evaluation, evaluation_prompts(recipe.evaluation)
    units = units_of(evaluation.samples, len(prompts))
    reference, null = many_steps(evaluation)
    systems = [System("student", "TCDScheduler", steps, 1.0) for steps in sorted(evaluation.steps)]
    print("| gamma |", " | ".join(f"KID at {system.steps}" for system in systems), "| another noise |")
    for gamma in GAMMAS:
        with open_pool(recipe, prompts, work, student, InferenceArguments(eta=gamma)) as pool:
            measured = pool.measure([reference, *systems, null], evaluation.samples, f"gamma {gamma:g}")
        distances = kids([one.features for one in measured], units)
        print(f"| {gamma:g} |", " | ".join(f"{kid:.4f}" for kid in distances), "|", flush=True)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], Path(sys.argv[3]), sys.argv[4:])
