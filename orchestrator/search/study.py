"""Keeps the trials of a search on disk, as Optuna's study: what each changed, how it went and what it was worth."""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import optuna
from optuna.samplers import BaseSampler, RandomSampler, TPESampler
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from fewstep.orchestrator.errors import BadInput
from fewstep.orchestrator.inputs.prompts import prompts_digest, read_prompts
from fewstep.orchestrator.recipe.identity import compare
from fewstep.orchestrator.recipe.recipe import Recipe
from fewstep.orchestrator.runs.run import is_abandoned
from fewstep.orchestrator.search.objectives import objectives_of
from fewstep.orchestrator.search.space import Space, changes_of, distributions, grid_of, params_of
from fewstep.orchestrator.search.trial import evaluations, has_ended, hours_of, read_outcome, trial_folder

FIRST_AT_RANDOM = 4  # trials, before Optuna goes by what it has seen
STATES = {
    TrialState.COMPLETE: "finished",
    TrialState.PRUNED: "stopped early",
    TrialState.FAIL: "failed",
    TrialState.RUNNING: "running",
    TrialState.WAITING: "waiting",
}


@dataclass(frozen=True)
class TrialRecord:
    """One trial as it stands."""

    number: int
    state: str  # one of STATES
    changes: Mapping[str, object]  # in the recipe
    values: Mapping[str, float]  # by objective; none before it is finished
    curve: Sequence[tuple[int, float]]  # steps and KID of its evaluations while training
    device_hours: float
    why: str  # it failed


def open_study(recipe: Recipe, space: Space, file: Path) -> optuna.Study:
    """Begin a search, or continue it. Raises BadInput where the file holds another search's trials."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    _drop_torn_line(file)
    objectives = objectives_of(recipe)
    study = optuna.create_study(
        storage=JournalStorage(JournalFileBackend(str(file))),
        study_name="search",
        directions=[StudyDirection.MINIMIZE] * len(objectives),
        load_if_exists=True,
    )
    search = recipe.search
    here = {
        "searcher": search.searcher,
        "scheduler": search.scheduler,
        "objectives": list(objectives),
        "prompts": prompts_digest(read_prompts(search.prompts, "search.prompts")),
        "space": {field: repr(range) for field, range in space.items()},
    }
    there = study.user_attrs.get("told", here)
    for field, before, now in compare(there, here):
        raise BadInput(f"search.{field} was {before} when {file.parent} was begun and is {now}; choose another output")
    if "told" not in study.user_attrs:
        for params in _first(recipe, space):
            study.enqueue_trial(params, skip_if_exists=True)
        study.set_user_attr("told", here)
    study.sampler = _sampler(recipe, len(study.trials))
    return study


def ask(study: optuna.Study, recipe: Recipe, space: Space) -> optuna.Trial:
    """The next trial."""
    return study.ask(distributions(recipe, space))


def begun(study: optuna.Study, recipe: Recipe) -> list[optuna.Trial]:
    """The trials that were under way when the driver died; those that had ended are settled."""
    running = study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
    trials = [optuna.trial.Trial(study, frozen._trial_id) for frozen in running]
    ended = [trial for trial in trials if has_ended(trial_folder(recipe, trial.number))]
    for trial in ended:
        settle(study, trial, recipe)
    return [trial for trial in trials if trial not in ended]


def settle(study: optuna.Study, trial: optuna.Trial, recipe: Recipe) -> None:
    """Note how a trial ended: finished, stopped early, or else failed."""
    folder = trial_folder(recipe, trial.number)
    outcome = read_outcome(folder)
    if outcome.values:
        study.tell(trial, [outcome.values[objective] for objective in objectives_of(recipe)])
    elif not outcome.why and is_abandoned(folder):
        if len(study.directions) == 1:  # Optuna takes no reports of several
            for step, kid in evaluations(recipe, trial.number):
                trial.report(kid, step)
        study.tell(trial, state=TrialState.PRUNED)
    else:
        study.tell(trial, state=TrialState.FAIL)


def trials_of(study: optuna.Study, recipe: Recipe, space: Space) -> list[TrialRecord]:
    """All that have begun, as they stand."""
    return [
        TrialRecord(
            number=frozen.number,
            state=STATES[frozen.state],
            changes=changes_of(frozen.params, space),
            values=dict(zip(objectives_of(recipe), frozen.values, strict=True)) if _has_values(frozen) else {},
            curve=evaluations(recipe, frozen.number),
            device_hours=hours_of(recipe, frozen.number),
            why=read_outcome(trial_folder(recipe, frozen.number)).why or _silent(frozen.state),
        )
        for frozen in study.get_trials(deepcopy=False)
        if frozen.state != TrialState.WAITING
    ]


def front_of(study: optuna.Study) -> list[int]:
    """The numbers of the trials that no other beats in every objective; of one objective, the best trial."""
    return [frozen.number for frozen in study.best_trials] if _finished(study) else []


def best_of(study: optuna.Study, objective: int) -> int:
    """The number of the best trial by one objective; the first of equals. Needs a finished one."""
    return min(_finished(study), key=lambda frozen: (frozen.values[objective], frozen.number)).number


def importance_of(study: optuna.Study, objective: int) -> dict[str, float]:
    """How much each field matters for being among the best, by PED-ANOVA; empty where there are too few trials."""
    finished = _finished(study)
    if len(finished) < 2 or len({frozen.values[objective] for frozen in finished}) < 2:
        return {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it says that less is taken for better, which is so
        return optuna.importance.get_param_importances(study, target=lambda frozen: frozen.values[objective])


def _finished(study: optuna.Study) -> list[FrozenTrial]:
    return study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))


def _first(recipe: Recipe, space: Space) -> list[dict[str, object]]:
    """What is tried first: the recipe as it is; of a grid, all."""
    if recipe.search.searcher != "grid":
        return [params] if (params := params_of(recipe, space)) else []
    grid = grid_of(space)
    return [dict(zip(grid, options, strict=True)) for options in itertools.product(*grid.values())]


def _sampler(recipe: Recipe, begun: int) -> BaseSampler:
    """A continued search does not draw again what it has drawn."""
    seed = recipe.training.seed + begun
    if recipe.search.searcher == "optuna":
        return TPESampler(seed=seed, n_startup_trials=FIRST_AT_RANDOM)
    return RandomSampler(seed=seed)


def _has_values(frozen: FrozenTrial) -> bool:
    """Optuna takes the last report of a stopped trial for its value."""
    return frozen.state == TrialState.COMPLETE


def _silent(state: TrialState) -> str:
    return "its process ended without a word" if state == TrialState.FAIL else ""


def _drop_torn_line(file: Path) -> None:
    """What a crash cut short was never told to anybody."""
    if file.exists():
        whole = file.read_bytes()
        if not whole.endswith(b"\n"):
            with file.open("r+b") as stream:
                stream.truncate(whole.rfind(b"\n") + 1)
