"""Runs several recipes on one teacher, then puts all of them into one table and one picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from rich.markup import escape

from fewstep.orchestrator.datasets.sources import check_sources
from fewstep.orchestrator.errors import BadInput
from fewstep.orchestrator.evaluation.baselines import measure_teacher
from fewstep.orchestrator.evaluation.results import EvaluationResults
from fewstep.orchestrator.observability.console import say
from fewstep.orchestrator.recipe.identity import compare as differences
from fewstep.orchestrator.recipe.parsing import check_training, load
from fewstep.orchestrator.recipe.recipe import Recipe
from fewstep.orchestrator.recipe.section import Json
from fewstep.orchestrator.reports.comparison_page import Entry, Finished, write_comparison
from fewstep.orchestrator.runs.run import Run
from fewstep.orchestrator.workflow import stages


def compare(recipes: Mapping[str, Recipe], folder: Path, seeds: int = 1) -> Json:
    """Run what is not finished, one after the other, and write compare.json, compare.md and compare.png after each.

    Each recipe is trained with as many seeds, from its own on. What fails is told with its error, and the same call
    tries it again. Raises BadInput where the recipes' numbers could not be compared, and where a run was begun with
    another recipe.
    """
    check(recipes)
    runs = [
        (name, run_recipe(recipe, name, seed, folder.resolve()))
        for seed in range(seeds)
        for name, recipe in recipes.items()
    ]
    for _, recipe in runs:
        if Path(recipe.output).exists():
            Run(recipe)  # refused now, where it was begun with another recipe
    if not all(_is_done(recipe) for _, recipe in runs):
        say("\n[bold]the teacher[/bold], once for all")
        measure_teacher(next(iter(recipes.values())), folder / "teacher" / "work", folder / "teacher")
    finished: dict[str, list[Finished]] = {}
    failed: dict[str, str] = {}
    facts: Json = {}
    for number, (name, recipe) in enumerate(runs, 1):
        label = Path(recipe.output).name
        say(f"\n[bold]{label}[/bold], {number} of {len(runs)}")
        try:
            if not _is_done(recipe):
                stages.run(recipe)
            run = Run(recipe)
            finished.setdefault(name, []).append(Finished(run, EvaluationResults.read(run.folder / "evaluation")))
        except Exception as error:  # whatever went wrong here, the others can be compared
            failed[label] = str(error).strip() or type(error).__name__
            say(f"{label} did not finish: {escape(failed[label])}")
        entries = [Entry(name, recipe_runs) for name, recipe_runs in finished.items()]
        facts = write_comparison(entries, failed, folder)
    say(f"\n{folder / 'compare.md'} shows them side by side")
    return facts


def read(words: Sequence[str]) -> dict[str, Recipe]:
    """The recipes among words by name; words like `training.steps=100` change a field in all of them."""
    overrides = [word for word in words if "=" in word]
    recipes: dict[str, Recipe] = {}
    for word in words:
        if word in overrides:
            continue
        name = Path(word).stem
        if name in recipes:
            raise BadInput(f"two recipes are called {name!r}; rename one, each has a run of its name")
        recipes[name] = load(word, overrides)
    if not recipes:
        raise BadInput("there is no recipe to compare; name some, like recipes/compare/emoji/*.yaml")
    return recipes


def check(recipes: Mapping[str, Recipe]) -> None:
    """Refuse recipes whose numbers could not be compared, and those that `run` would refuse."""
    first, *others = recipes
    for name in others:
        for field, there, here in differences(_shared(recipes[first]), _shared(recipes[name])):
            raise BadInput(f"{field} is {there} in {first} and {here} in {name}; what is compared must share it")
    for recipe in recipes.values():
        check_training(recipe)
        check_sources(recipe)


def _shared(recipe: Recipe) -> Json:
    """All that measuring depends on but the student."""
    resolved = recipe.resolved()
    negative = {"negative_prompt": recipe.trajectories.negative_prompt}
    return {"teacher": resolved["teacher"], "evaluation": resolved["evaluation"], "trajectories": negative}


def run_recipe(recipe: Recipe, name: str, seed: int, folder: Path) -> Recipe:
    """With a run of its own; where two plans are equal, what they sample is one, and so is the teacher's measure."""
    training = recipe.training.model_copy(update={"seed": recipe.training.seed + seed})
    store = recipe.trajectories.store or str(folder / "trajectories")
    trajectories = recipe.trajectories.model_copy(update={"store": store})
    evaluation = recipe.evaluation.model_copy(update={"baselines": str(folder / "teacher")})
    output = str(folder / "runs" / (f"{name}-{seed + 1}" if seed else name))
    sections = {"training": training, "trajectories": trajectories, "evaluation": evaluation}
    return recipe.model_copy(update={"output": output, **sections})


def _is_done(recipe: Recipe) -> bool:
    return (Path(recipe.output) / "report.html").exists()  # the last that a run writes
