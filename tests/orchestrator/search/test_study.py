"""What a search keeps of its trials, and what it tells of them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import optuna
import pyarrow.parquet as pq
import pytest
import yaml

from fewstep.orchestrator.errors import BadInput
from fewstep.orchestrator.files import write_whole
from fewstep.orchestrator.recipe.parsing import load
from fewstep.orchestrator.recipe.recipe import Recipe
from fewstep.orchestrator.runs.run import abandon
from fewstep.orchestrator.search.confirmation import Confirmation
from fewstep.orchestrator.search.report import SearchResults, write_best, write_results
from fewstep.orchestrator.search.space import space_of
from fewstep.orchestrator.search.study import (
    ask,
    begun,
    best_of,
    front_of,
    importance_of,
    open_study,
    settle,
    trials_of,
)
from fewstep.orchestrator.search.trial import OUTCOME, trial_folder
from tests.support import tiny


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny recipe that could be searched, and its teacher."""
    folder = tmp_path_factory.mktemp("recipe")
    data = tiny.recipe_data(folder)
    data["method"] = {"name": "lcm", "teacher_step": "stored", "skip": 250, "grid": 4}
    data["search"] = tiny.search_data(folder)
    (folder / "recipe.yaml").write_text(yaml.safe_dump(data))
    return folder


@pytest.fixture
def recipe(folder: Path, tmp_path: Path) -> Recipe:
    return load(str(folder / "recipe.yaml"), [f"output={tmp_path}", "search.objectives=[kid@2, training_hours]"])


def opened(recipe: Recipe) -> optuna.Study:
    return open_study(recipe, space_of(recipe), Path(recipe.output) / "trials.log")


def end(study: optuna.Study, recipe: Recipe, trial: optuna.Trial, outcome: dict[str, object]) -> None:
    """A trial as it is when it has ended so."""
    write_whole(trial_folder(recipe, trial.number) / OUTCOME, json.dumps(outcome))
    settle(study, trial, recipe)


def fill(recipe: Recipe, values: Sequence[tuple[float, float]]) -> optuna.Study:
    study = opened(recipe)
    for kid, hours in values:
        outcome = {"values": {"kid@2": kid, "training_hours": hours}}
        end(study, recipe, ask(study, recipe, space_of(recipe)), outcome)
    return study


def test_a_search_that_is_opened_again_knows_its_trials_and_draws_others(recipe: Recipe) -> None:
    space, study = space_of(recipe), fill(recipe, [(0.3, 1.0), (0.2, 2.0)])
    before = trials_of(study, recipe, space)
    assert before[0].changes["method.skip"] == 250  # the recipe as it is comes first
    drawn, again = [frozen.params for frozen in study.trials], opened(recipe)
    assert trials_of(again, recipe, space) == before
    assert ask(again, recipe, space).params not in drawn


def test_what_was_under_way_goes_on_and_what_had_ended_is_settled(recipe: Recipe) -> None:
    space, study = space_of(recipe), opened(recipe)
    under_way, finished, stopped = (ask(study, recipe, space) for _ in range(3))
    outcome = {"values": {"kid@2": 0.1, "training_hours": 1.0}}
    write_whole(trial_folder(recipe, finished.number) / OUTCOME, json.dumps(outcome))
    abandon(trial_folder(recipe, stopped.number))
    again = opened(recipe)
    assert [trial.number for trial in begun(again, recipe)] == [under_way.number]
    assert [trial.state for trial in trials_of(again, recipe, space)] == ["running", "finished", "stopped early"]


def test_a_line_that_a_crash_cut_short_is_as_if_it_had_never_been(recipe: Recipe) -> None:
    fill(recipe, [(0.3, 1.0)])
    file = Path(recipe.output) / "trials.log"
    whole = file.read_bytes()
    file.write_bytes(whole + b'{"op_code": 4, "worker')
    fill(recipe, [(0.2, 1.0)])
    assert file.read_bytes().startswith(whole) and len(opened(recipe).get_trials()) == 2


def test_trials_of_another_search_are_refused(folder: Path, recipe: Recipe) -> None:
    fill(recipe, [(0.3, 1.0)])
    changed = ["search.objectives=[kid@2, training_hours]", "search.space={method.skip: [250, 1000]}"]
    with pytest.raises(BadInput, match="search.space.method.skip was .* choose another output"):
        opened(load(str(folder / "recipe.yaml"), [f"output={recipe.output}", *changed]))
    more = load(str(folder / "recipe.yaml"), [f"output={recipe.output}", changed[0], "search.trials=9"])
    assert len(opened(more).get_trials()) == 1  # a budget may grow


def test_a_grid_is_gone_through_once(folder: Path, tmp_path: Path) -> None:
    varied = "method.skip: [250, 500], method.huber_c: [0.1, 0.01]"
    fixed = "method.ema_decay: [0.9], method.guidance_scale: [[1.0, 4.0]], training.learning_rate: [1e-3]"
    grid = [f"output={tmp_path}", "search.searcher=grid", f"search.space={{{varied}, {fixed}}}"]
    recipe = load(str(folder / "recipe.yaml"), grid)
    trials = [ask(opened(recipe), recipe, space_of(recipe)) for _ in range(4)]
    tried = sorted((trial.params["method.skip"], trial.params["method.huber_c"]) for trial in trials)
    assert tried == [("250", "0.01"), ("250", "0.1"), ("500", "0.01"), ("500", "0.1")]


def test_the_front_holds_what_nothing_beats_in_everything(recipe: Recipe) -> None:
    study = fill(recipe, [(0.3, 1.0), (0.2, 2.0), (0.3, 2.0), (0.1, 3.0)])
    assert sorted(front_of(study)) == [0, 1, 3]
    assert [best_of(study, 0), best_of(study, 1)] == [3, 0]
    assert set(importance_of(study, 0)) == set(space_of(recipe))


def test_results_say_what_was_tried_and_the_best_can_be_run(recipe: Recipe, tmp_path: Path) -> None:
    space, study = space_of(recipe), fill(recipe, [(0.3, 1.0), (0.2, 2.0)])
    end(study, recipe, ask(study, recipe, space), {"why": "it diverged"})
    trials = trials_of(study, recipe, space)
    found = SearchResults(
        recipe, space, trials, front_of(study), best_of(study, 0), importance_of(study, 0), "That is no gain."
    )
    write_results(found, tmp_path)
    rows = pq.read_table(tmp_path / "search.parquet").to_pylist()
    assert [row["state"] for row in rows] == ["finished", "finished", "failed"]
    assert [row["is_best"] for row in rows] == [False, True, False] and rows[2]["kid@2"] is None
    for page in ("search.md", "search.html"):
        text = (tmp_path / page).read_text()
        assert "That is no gain." in text and "failed: it diverged" in text
    best = load(str(write_best(found, tmp_path)))
    assert best.training.learning_rate == trials[1].changes["training.learning_rate"]
    assert not best.search.space and best.output.endswith("-best")


@pytest.mark.parametrize(
    ("low", "high", "by_seed", "verdict"),
    [
        (-0.03, -0.01, (-0.02, -0.01), "a gain"),
        (-0.03, -0.01, (-0.05, 0.01), "no gain"),  # one seed says otherwise
        (-0.03, 0.01, (-0.02, -0.01), "no gain"),
        (0.01, 0.03, (0.02, 0.02), "a loss"),
    ],
)
def test_a_gain_needs_the_interval_and_every_seed(
    low: float, high: float, by_seed: tuple[float, ...], verdict: str
) -> None:
    found = Confirmation(4, (low + high) / 2, low, high, by_seed, 0.1, 0.1, 2000)
    assert found.verdict == verdict
    assert found.sentence().endswith(f"That is {verdict}.")


def test_a_trial_that_was_stopped_is_worth_nothing(folder: Path, tmp_path: Path) -> None:
    recipe = load(str(folder / "recipe.yaml"), [f"output={tmp_path}"])
    space, study = space_of(recipe), opened(recipe)
    trial = ask(study, recipe, space)
    rows = trial_folder(recipe, trial.number) / "rounds/1-lcm/metrics.jsonl"
    write_whole(rows, '{"step": 2, "quality/kid@2": 0.3}\n')
    abandon(trial_folder(recipe, trial.number))
    settle(study, trial, recipe)
    (found,) = trials_of(study, recipe, space)
    assert (found.state, found.values, found.curve) == ("stopped early", {}, [(2, 0.3)])
