"""Searches: runs many trials of one recipe on the same data, then looks fairly at whether the best is any better."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path

import optuna
from rich.live import Live
from rich.markup import escape
from rich.table import Table

from fewstep.orchestrator.compute.cluster import connect
from fewstep.orchestrator.datasets.sources import check_sources
from fewstep.orchestrator.errors import BadInput
from fewstep.orchestrator.inputs.prompts import read_prompts
from fewstep.orchestrator.observability.console import console, say
from fewstep.orchestrator.planning.preflight import check_times
from fewstep.orchestrator.recipe.parsing import check_training, vary
from fewstep.orchestrator.recipe.recipe import Recipe
from fewstep.orchestrator.recipe.section import Json
from fewstep.orchestrator.runs.run import Run
from fewstep.orchestrator.search.confirmation import FOLDER, confirm
from fewstep.orchestrator.search.objectives import Budget, check_stopping, objectives_of, target_of
from fewstep.orchestrator.search.report import SearchResults, write_best, write_results
from fewstep.orchestrator.search.scoring import SELECTION, measure_target
from fewstep.orchestrator.search.space import Space, extremes_of, grid_of, space_of
from fewstep.orchestrator.search.study import TrialRecord, best_of, front_of, importance_of, open_study, trials_of
from fewstep.orchestrator.search.trial import check_data, pin
from fewstep.orchestrator.search.tune import Proposals, concurrency, run_trials
from fewstep.orchestrator.teachers.teacher import Teacher


def search(recipe: Recipe) -> Json:
    """Run trials, train and judge the best against the recipe as it is, write all that; the same call continues."""
    space = check_search(recipe)
    opened = Run(recipe)
    with opened.driven():
        connect(recipe.resources)
        concurrency(recipe)
        study = open_study(recipe, space, opened.folder / "trials.log")
        proposals = Proposals(study, opened, space)

        def shown() -> Table:
            return table(trials_of(study, recipe, space), recipe)

        if proposals.has_more:
            pinned = pin(opened)
            measure_target(_selecting(recipe), opened.folder / SELECTION)
            with Live(get_renderable=shown, console=console, refresh_per_second=0.5):
                run_trials(proposals, recipe, pinned)
        results = _results(study, recipe, space, "")
        write_results(results, opened.folder)
        if results.best < 0:
            say("no trial finished")
            return {"failed": {str(trial.number): trial.why for trial in results.trials}}
        file = write_best(results, opened.folder)
        say(f"best trial: {results.best}, {file}")
        verdict = _confirm(recipe, results, opened.folder / FOLDER)
        results = _results(study, recipe, space, verdict)
        write_results(results, opened.folder)
        write_best(results, opened.folder)
    say(f"\n{escape(verdict)}\ndone: [bold]{opened.folder / 'search.html'}[/bold] shows the trials, {file} is the best")
    return {
        "trials": [asdict(trial) for trial in results.trials],
        "front": list(results.front),
        "best": results.best,
        "recipe": str(file),
        "verdict": verdict,
    }


def check_search(recipe: Recipe) -> Space:
    """What a search of this recipe varies. Refuses one that could not be run, before anything starts."""
    check_training(recipe)
    check_sources(recipe)
    space = space_of(recipe)
    if recipe.search.searcher == "grid":
        grid_of(space)
    objectives_of(recipe)
    check_stopping(recipe)
    Budget.of(recipe)

    def readable(trial: Recipe) -> None:
        check_sources(trial)
        check_data(recipe, trial)

    _check_each(recipe, space, readable)
    _check_prompts(recipe)
    config = Teacher(recipe.teacher).scheduler
    _check_each(recipe, space, lambda trial: check_times(trial, config))
    return space


def _check_each(recipe: Recipe, space: Space, check: Callable[[Recipe], None]) -> None:
    """Check the recipe with each option, and each end of a range."""
    for field, values in extremes_of(recipe, space).items():
        for value in values:
            try:
                check(vary(recipe, {field: value}))
            except BadInput as error:
                raise BadInput(f"search.space.{field}={value!r}: {error}") from None


def _check_prompts(recipe: Recipe) -> None:
    if not recipe.search.prompts:
        raise BadInput(
            "search.prompts is missing: trials are chosen by other prompts than those that the result is judged by; "
            "name a text file, one prompt a line"
        )
    mine = read_prompts(recipe.search.prompts, "search.prompts")
    both = {*mine} & {*read_prompts(recipe.evaluation.prompts, "evaluation.prompts")} - {""}
    if both:
        raise BadInput(
            f"search.prompts: {sorted(both)[0]!r} is among evaluation.prompts too, and {len(both) - 1} others; trials "
            "are chosen by other prompts than those that the result is judged by"
        )


def _selecting(recipe: Recipe) -> Recipe:
    return vary(recipe, {"evaluation.prompts": recipe.search.prompts})


def _results(study: optuna.Study, recipe: Recipe, space: Space, verdict: str) -> SearchResults:
    target = objectives_of(recipe).index(target_of(recipe))
    front = front_of(study)
    best = best_of(study, target) if front else -1
    trials = trials_of(study, recipe, space)
    return SearchResults(recipe, space, trials, front, best, importance_of(study, target), verdict)


def _confirm(recipe: Recipe, results: SearchResults, folder: Path) -> str:
    changes = next(trial.changes for trial in results.trials if trial.number == results.best)
    if vary(recipe, changes).resolved() == recipe.resolved():
        return "The recipe as it is came out best, so that there is nothing to compare: no gain."
    return confirm(recipe, changes, folder).sentence()


def table(trials: Sequence[TrialRecord], recipe: Recipe) -> Table:
    """How the trials stand."""
    objectives = objectives_of(recipe)
    rows = Table("trial", "", "changes", "steps", "KID there", *objectives, box=None, pad_edge=False)
    for trial in trials:
        step, kid = trial.curve[-1] if trial.curve else ("", "")
        changes = ", ".join(f"{field.partition('.')[2]} {value}" for field, value in trial.changes.items())
        there = f"{kid:.4f}" if trial.curve else ""
        worth = [f"{trial.values[name]:.4f}" if name in trial.values else "" for name in objectives]
        rows.add_row(str(trial.number), trial.state, escape(changes), str(step), there, *worth)
    return rows
