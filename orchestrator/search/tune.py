"""Runs trials on Ray Tune: which is next, which is stopped early, how many run at a time, and what became of each."""

from __future__ import annotations

import os
import shutil
import sys
import time
import uuid
from collections import Counter
from pathlib import Path
from typing import Any

import optuna
from optuna.trial import TrialState
from ray import tune
from ray.tune.schedulers import AsyncHyperBandScheduler, FIFOScheduler, MedianStoppingRule, TrialScheduler
from ray.tune.search import Searcher

from fewstep.orchestrator.compute.cluster import require, room_for, worker_bundle
from fewstep.orchestrator.observability import metrics
from fewstep.orchestrator.observability.console import say
from fewstep.orchestrator.recipe.recipe import Recipe
from fewstep.orchestrator.runs.run import Run, abandon
from fewstep.orchestrator.search.objectives import KID, STEP, Budget
from fewstep.orchestrator.search.space import Space, changes_of
from fewstep.orchestrator.search.study import ask, begun, settle, trials_of
from fewstep.orchestrator.search.trial import Pinned, TuneTrial, read_outcome, total_steps, trial_folder

REDUCTION = 3  # of the trials at each of ASHA's rungs, one goes on
COMPARED = 3  # trials that a median is of, at least
# A trial's own actor is on the head node and holds no CPU: the workers that it starts need all there are.
HOME = {"CPU": 0, "node:__internal_head__": 0.001}
SETTINGS = {
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",  # a trial may end before its first evaluation
    "RAY_AIR_NEW_OUTPUT": "0",  # whose tables go to stdout, however silent it is told to be
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # or what was interrupted would look as if it had been stopped early
}


def run_trials(proposals: Proposals, recipe: Recipe, pinned: Pinned) -> None:
    """Run trials until a budget is spent. What Tune keeps of them is not read again: the study is what counts."""
    os.environ.update(SETTINGS)
    storage = Path(recipe.output).resolve() / "tune"
    tuner = tune.Tuner(
        tune.with_resources(tune.with_parameters(TuneTrial, pinned=pinned), HOME),
        tune_config=tune.TuneConfig(
            search_alg=proposals,
            scheduler=scheduler_of(recipe),
            num_samples=-1,
            max_concurrent_trials=concurrency(recipe),
            trial_dirname_creator=lambda trial: trial.trial_id,
        ),
        run_config=tune.RunConfig(
            name=uuid.uuid4().hex,
            storage_path=str(storage),
            checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),
            verbose=0,
        ),
    )
    try:
        tuner.fit()
    finally:
        shutil.rmtree(storage, ignore_errors=True)


def scheduler_of(recipe: Recipe) -> TrialScheduler:
    """Who stops trials early."""
    options = {"time_attr": STEP, "metric": KID, "mode": "min", "grace_period": recipe.training.evaluate_every}
    if recipe.search.scheduler == "asha":
        return AsyncHyperBandScheduler(**options, max_t=total_steps(recipe), reduction_factor=REDUCTION)
    if recipe.search.scheduler == "median":
        return MedianStoppingRule(  # which never pauses
            **options, min_samples_required=COMPARED, min_time_slice=sys.maxsize
        )
    return FIFOScheduler()


def concurrency(recipe: Recipe) -> int:
    """How many trials run at a time. Raises BadInput with the arithmetic where the cluster has no room for that.

    A trial holds its training workers, then its evaluators. Trials of which each got a part would wait for each other
    forever, so that all have to find room at once.
    """
    concurrent, resources = recipe.search.concurrent, recipe.resources
    one = [worker_bundle(resources)] * max(resources.workers, resources.generators)
    field = (
        f"search.concurrent={max(1, concurrent)} with resources.workers={resources.workers} and "
        f"resources.generators={resources.generators}"
    )
    require(resources, one * max(1, concurrent), field)
    return concurrent or room_for(one)


class Proposals(Searcher):
    """Tells Tune what to try next, and the study what became of it."""

    def __init__(self, study: optuna.Study, run: Run, space: Space) -> None:
        super().__init__()
        self._study, self._run, self._space = study, run, space
        self._budget = Budget.of(run.recipe)
        before_s = run.recorded("stages", "search") or 0.0
        assert isinstance(before_s, int | float)
        self._started = time.time() - before_s
        self._live: dict[str, optuna.Trial] = {}  # by Tune's name
        self._recorder = metrics.Recorder(run.folder / "search.jsonl", run.folder.name, run.recipe.method.name)
        self._unfinished = begun(study, run.recipe)

    @property
    def has_more(self) -> bool:
        """Whether there is a trial to run."""
        return bool(self._unfinished) or not self._is_over()

    def suggest(self, trial_id: str) -> dict[str, Any] | str:
        """What an interrupted search left unfinished, then new trials, until a budget is spent."""
        if self._unfinished:
            trial = self._unfinished.pop(0)
        elif self._is_over():
            return Searcher.FINISHED
        else:
            trial = ask(self._study, self._run.recipe, self._space)
        self._live[trial_id] = trial
        return {"number": trial.number, "changes": changes_of(trial.params, self._space)}

    def _is_over(self) -> bool:
        trials = trials_of(self._study, self._run.recipe, self._space)
        if self._run.recipe.search.searcher == "grid" and not self._study.get_trials(states=(TrialState.WAITING,)):
            return True
        hours = (time.time() - self._started) / 3600
        return self._budget.is_spent(len(trials), hours, sum(trial.device_hours for trial in trials))

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Finished, failed or stopped early; Tune tells of a stop before the trial itself hears of it."""
        trial = self._live.pop(trial_id)
        folder = trial_folder(self._run.recipe, trial.number)
        if not error and not read_outcome(folder).has_ended:
            abandon(folder)
        settle(self._study, trial, self._run.recipe)
        trials = trials_of(self._study, self._run.recipe, self._space)
        states = Counter(other.state for other in trials)
        self._recorder.record(len(trials), {f"search/{state}": count for state, count in states.items()})
        ended = next(other for other in trials if other.number == trial.number)
        worth = ", ".join(f"{name} {value:.4f}" for name, value in ended.values.items())
        say(f"trial {ended.number} {ended.state}: {worth or ended.why or 'worse than others'}")
        self._run.record("stages", "search", round(time.time() - self._started, 2))

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        """Optuna hears of it in the end."""

    def save(self, checkpoint_path: str) -> None:
        """Nothing: the study is on disk as it is."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing, as `save`."""
