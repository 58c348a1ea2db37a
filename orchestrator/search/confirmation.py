"""Ends a search: trains its best and the recipe as it is again, and compares them on prompts that no trial saw."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from fewstep.orchestrator.evaluation.baselines import many_steps
from fewstep.orchestrator.evaluation.distances import Features, KernelDistances, Resampling, combine, units_of
from fewstep.orchestrator.evaluation.evaluator_pool import evaluation_prompts, key_name
from fewstep.orchestrator.evaluation.feature_cache import newest
from fewstep.orchestrator.evaluation.results import SAMPLES_FOR_A_CLAIM, EvaluationResults, caution
from fewstep.orchestrator.evaluation.system import System
from fewstep.orchestrator.files import write_whole
from fewstep.orchestrator.recipe.parsing import vary
from fewstep.orchestrator.recipe.recipe import Recipe
from fewstep.orchestrator.search.objectives import watched_steps
from fewstep.orchestrator.workflow.comparison import compare, run_recipe
from fewstep.orchestrator.workflow.round_data import store_of

FOLDER = "confirmation"  # folder of a search
BEST, DEFAULT = "best", "default"


@dataclass(frozen=True)
class Confirmation:
    """The paired difference of mean KIDs, best less default, with the ends of its 95 % interval."""

    steps: int
    value: float
    low: float
    high: float
    by_seed: tuple[float, ...]
    best: float  # mean KID
    default: float
    samples: int

    @property
    def verdict(self) -> str:
        """A gain needs the interval and every seed on its side; so does a loss."""
        if self.high < 0 and max(self.by_seed) < 0:
            return "a gain"
        if self.low > 0 and min(self.by_seed) > 0:
            return "a loss"
        return "no gain"

    def sentence(self) -> str:
        """What may be quoted."""
        seeds = ", ".join(f"{value:+.4f}" for value in self.by_seed)
        text = (
            f"Trained again with {len(self.by_seed)} seeds each, and judged by {self.samples:,} samples of noise and "
            f"prompts that no trial saw: KID at {self.steps} steps {self.best:.4f} for the search's best and "
            f"{self.default:.4f} for the recipe as it is, paired difference {self.value:+.4f}, 95 % interval "
            f"[{self.low:+.4f}, {self.high:+.4f}]; by seed {seeds}. That is {self.verdict}."
        ).replace(" 1 steps", " 1 step")
        return text if self.samples >= SAMPLES_FOR_A_CLAIM else f"{text} {caution(self.samples)}"


def confirm(recipe: Recipe, changes: Mapping[str, object], folder: Path) -> Confirmation:
    """Train and judge what is not trained and judged yet. Raises RuntimeError where a run fails; call it again."""
    shared = {"trajectories.store": store_of(recipe)}
    recipes = {DEFAULT: vary(recipe, shared), BEST: vary(recipe, {**changes, **shared})}
    seeds = recipe.search.seeds
    failed = compare(recipes, folder, seeds)["failed"]
    assert isinstance(failed, dict)
    for name, why in failed.items():
        raise RuntimeError(f"{name} of {folder} did not finish: {why}; the same command tries it again")
    evaluation, steps = recipe.evaluation, watched_steps(recipe)
    units = units_of(evaluation.samples, len(evaluation_prompts(evaluation)))
    reference, _ = many_steps(evaluation)
    sets = {"reference": Features(newest(folder / "teacher", key_name(reference)).features, units)}
    for name, one in recipes.items():
        for seed in range(seeds):
            evaluated = Path(run_recipe(one, name, seed, folder).output) / "evaluation"
            row = EvaluationResults.read(evaluated).find("student", steps, "KID")
            student = System("student", row.sampler, steps, row.guidance_scale)
            sets[f"{name} {seed}"] = Features(newest(evaluated / "features", key_name(student)).features, units)
    resampling = Resampling(int(units.max()) + 1, 0, evaluation.bootstraps, evaluation.seed)
    distances = KernelDistances(sets, resampling)

    def kids(name: str, weight: float):  # noqa: ANN202
        return [(weight, distances.between(f"{name} {seed}", "reference")) for seed in range(seeds)]

    best, default = kids(BEST, 1 / seeds), kids(DEFAULT, -1 / seeds)
    difference = combine(*best, *default)
    confirmation = Confirmation(
        steps=steps,
        value=difference.value,
        low=difference.low,
        high=difference.high,
        by_seed=tuple(one.value - other.value for (_, one), (_, other) in zip(best, default, strict=True)),
        best=combine(*best).value,
        default=-combine(*default).value,
        samples=evaluation.samples,
    )
    facts = asdict(confirmation) | {"verdict": confirmation.verdict}
    write_whole(folder / "confirmation.json", json.dumps(facts, indent=1) + "\n")
    return confirmation
