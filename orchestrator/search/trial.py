"""Runs one trial of a search: the ordinary training, export and judging of a recipe, in a folder of its own."""

from __future__ import annotations

import json
import shutil
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter
from ray import tune

from fewstep.methods.base import Round
from fewstep.orchestrator.datasets.dataset import Dataset
from fewstep.orchestrator.datasets.sources import DatasetKind, dataset_kinds, trajectories_of
from fewstep.orchestrator.errors import Abandoned, BadInput
from fewstep.orchestrator.files import write_whole
from fewstep.orchestrator.observability import metrics
from fewstep.orchestrator.recipe.data import Trajectories
from fewstep.orchestrator.recipe.parsing import vary
from fewstep.orchestrator.recipe.recipe import Recipe
from fewstep.orchestrator.runs.run import RESULT, Run, abandon, is_abandoned
from fewstep.orchestrator.search.objectives import (
    KID,
    STEP,
    TRAINING_HOURS,
    device_hours,
    kid_name,
    objectives_of,
    steps_of,
    watched,
    watched_steps,
)
from fewstep.orchestrator.search.scoring import SELECTION, judge_trial
from fewstep.orchestrator.students.export import export_student
from fewstep.orchestrator.training.driver import train_rounds
from fewstep.orchestrator.training.round_job import length
from fewstep.orchestrator.workflow.round_data import make_round_data, samples_itself, store_of

OUTCOME = "trial.json"  # of a finished trial, in its folder: its values by name
PINNED_ROUND = TypeAdapter(dict[DatasetKind, tuple[str, int]])  # as run.json keeps it
LOOK_S = 1.0  # between two looks at what a trial has measured


@dataclass(frozen=True)
class Pinned:
    """The data sets that all trials read: of each round that the recipe's own teacher samples for."""

    recipe: Recipe  # as it is, but in absolute paths: Tune runs each trial in a folder of its own
    datasets: Mapping[int, Mapping[DatasetKind, tuple[str, int]]]  # URL and version, by the round's number from 0

    def of(self, recipe: Recipe, number: int) -> dict[DatasetKind, Dataset]:
        """What a round of a trial reads. Raises BadInput where it needs other data."""
        datasets = self.datasets[shared_round(self.recipe, recipe, number)]
        return {dataset_kind: Dataset.open(url, version) for dataset_kind, (url, version) in datasets.items()}


@dataclass(frozen=True)
class Outcome:
    """How a trial ended: what it was worth, or why it failed."""

    values: Mapping[str, float] = field(default_factory=dict)  # by objective
    why: str = ""

    @property
    def has_ended(self) -> bool:
        """Whether it is worth anything, or failed."""
        return bool(self.values or self.why)


def pin(run: Run) -> Pinned:
    """Make the data of a search, or find what was made when it began: no trial sees another version."""
    datasets: dict[int, dict[DatasetKind, tuple[str, int]]] = {}
    for number in range(len(run.recipe.method.build().rounds())):
        if samples_itself(run.recipe, number):
            continue
        if not run.recorded("pinned", str(number)):
            generated = make_round_data(run, number)
            run.record("pinned", str(number), {kind: (one.url, one.version) for kind, one in generated.items()})
        datasets[number] = PINNED_ROUND.validate_python(run.recorded("pinned", str(number)))
    paths = {"output": str(run.folder), "trajectories.store": store_of(run.recipe)}
    return Pinned(vary(run.recipe, paths), datasets)


def shared_round(recipe: Recipe, trial: Recipe, number: int) -> int:
    """The round of the recipe that reads what a round of a trial does. Raises BadInput where none does."""
    mine = trial.method.build().rounds()[number]
    for known, round in enumerate(recipe.method.build().rounds()):
        kinds = {*dataset_kinds(recipe, round).values()} >= {*dataset_kinds(trial, mine).values()}
        if not samples_itself(recipe, known) and kinds and _data(recipe, round) == _data(trial, mine):
            return known
    raise BadInput(
        f"{mine.name} would learn from other trajectories than those that all trials share; leave out what changes them"
    )


def check_data(recipe: Recipe, trial: Recipe) -> None:
    """Refuse a trial that would learn from other data than the recipe does."""
    for number in range(len(trial.method.build().rounds())):
        if not samples_itself(trial, number):
            shared_round(recipe, trial, number)


def _data(recipe: Recipe, round: Round) -> Trajectories:
    return trajectories_of(recipe, round).model_copy(update={"store": ""})


def trial_recipe(recipe: Recipe, number: int, changes: Mapping[str, object]) -> Recipe:
    """What a trial runs, in a folder of the search's, judged by its prompts."""
    folder = Path(recipe.output).resolve()
    own = {
        "output": str(trial_folder(recipe, number)),
        "evaluation.prompts": recipe.search.prompts,
        "evaluation.baselines": str(folder / SELECTION),
        "training.evaluate_at": watched_steps(recipe),
    }
    return vary(recipe, {**changes, **own})


def trial_folder(recipe: Recipe, number: int) -> Path:
    """Where a trial of a search is; it is called by its number."""
    return Path(recipe.output).resolve() / "trials" / f"{number:04d}"


class TuneTrial(tune.Trainable):
    """A trial as Ray Tune drives it: training runs beside, and each step is one evaluation of it.

    Nobody kills it while it trains, which would leave Ray Train's placement group behind: `cleanup` lets it end.
    """

    def setup(self, config: dict[str, Any], pinned: Pinned) -> None:
        """Start, or continue."""
        self._pinned, self._number = pinned, int(config["number"])
        self._run = Run(trial_recipe(pinned.recipe, self._number, config["changes"]))
        self._errors: list[BaseException] = []
        self._num_reported = 0
        self._thread = threading.Thread(target=self._work, daemon=True, name="trial")
        self._thread.start()

    def step(self) -> dict[str, Any]:
        """The next evaluation, or the last one, with the end: then there is nothing left to stop."""
        total = total_steps(self._run.recipe)
        while True:
            is_over = not self._thread.is_alive()  # before the look, or a row could be missed
            rows = [{STEP: step, KID: kid} for step, kid in evaluations(self._pinned.recipe, self._number)]
            if len(rows) > self._num_reported and rows[self._num_reported][STEP] < total:
                self._num_reported += 1
                return rows[self._num_reported - 1]
            if is_over:
                if self._errors:
                    raise self._errors[0]
                return {**(rows[-1] if rows else {}), "done": True}  # Tune's median rule takes no end without them
            time.sleep(LOOK_S)

    def cleanup(self) -> None:
        """Called in the end, and where a scheduler stops the trial."""
        if self._thread.is_alive():
            abandon(self._run.folder)
            self._thread.join()
        for checkpoints in self._run.folder.glob("rounds/*/checkpoints"):
            shutil.rmtree(checkpoints)

    def _work(self) -> None:
        try:
            run_trial(self._run, self._pinned)
        except Abandoned:
            return
        except BaseException as error:
            why = str(error).strip() or type(error).__name__
            write_whole(self._run.folder / OUTCOME, json.dumps({"why": why}))
            self._errors.append(error)


def run_trial(run: Run, pinned: Pinned) -> None:
    """Train, export and judge; what is done is not done again."""
    recipe = run.recipe

    def data_of(number: int) -> dict[DatasetKind, Dataset]:
        if samples_itself(recipe, number):
            return {
                dataset_kind: Dataset.open(generated.url, generated.version)
                for dataset_kind, generated in make_round_data(run, number).items()
            }
        return pinned.of(recipe, number)

    with run.stage("trial"):
        train_rounds(recipe, run, data_of)
        student = run.folder / "student"
        if not student.exists():
            rounds = recipe.method.build().rounds()
            export_student(recipe, run.round_folder(len(rounds), rounds[-1]) / RESULT, student)
        judged = [steps for objective in objectives_of(recipe) if (steps := steps_of(objective))]
        kids = judge_trial(recipe, student, judged, run.folder / "judged")
    train_s = run.recorded("stages", "train")
    assert isinstance(train_s, int | float)
    values = {kid_name(steps): kid for steps, kid in kids.items()}
    values[TRAINING_HOURS] = device_hours(recipe, recipe.resources.workers, train_s)
    write_whole(run.folder / OUTCOME, json.dumps({"values": values}))


def has_ended(folder: Path) -> bool:
    """Whether there is nothing left to do of a trial."""
    return read_outcome(folder).has_ended or is_abandoned(folder)


def read_outcome(folder: Path) -> Outcome:
    """How a trial ended; without anything while it is under way or where it was stopped."""
    file = folder / OUTCOME
    return Outcome(**json.loads(file.read_text())) if file.exists() else Outcome()


def evaluations(recipe: Recipe, number: int) -> list[tuple[int, float]]:
    """Training steps and KID of what a trial of a search has measured on its way."""
    before, curve = 0, list[tuple[int, float]]()
    files = trial_folder(recipe, number).glob("rounds/*/metrics.jsonl")
    for file in sorted(files, key=lambda file: int(file.parent.name.partition("-")[0])):
        rows = metrics.read(file)
        curve += [(before + int(row["step"]), row[watched(recipe)]) for row in rows if watched(recipe) in row]
        before += int(rows[-1]["step"]) if rows else 0
    return curve


def hours_of(recipe: Recipe, number: int) -> float:
    """Device-hours that a trial held, at most; 0 before it has ended."""
    file = trial_folder(recipe, number) / "run.json"
    seconds = json.loads(file.read_text())["stages"].get("trial", 0.0) if file.exists() else 0.0
    return device_hours(recipe, max(recipe.resources.workers, recipe.resources.generators), seconds)


def total_steps(recipe: Recipe) -> int:
    """Training steps of all rounds."""
    return sum(length(round, recipe) for round in recipe.method.build().rounds())
