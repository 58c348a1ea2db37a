"""Whole searches on the tiny teacher."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import yaml
from ray.util.placement_group import placement_group_table
from typer.testing import CliRunner

from fewstep.orchestrator.cli.main import app
from fewstep.orchestrator.datasets.commit_log import open_commit_log
from fewstep.orchestrator.observability import metrics
from fewstep.orchestrator.recipe.parsing import load
from tests.support import tiny

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("cluster")]


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny recipe with a search in it."""
    folder = tmp_path_factory.mktemp("search")
    data = tiny.recipe_data(folder)
    data["method"] = {"name": "lcm", "teacher_step": "stored", "skip": 250}
    data["training"] |= {"steps": 8, "evaluate_every": 2}  # pyright: ignore[reportOperatorIssue]
    data["search"] = tiny.search_data(folder)
    file = folder / "recipe.yaml"
    file.write_text(yaml.safe_dump(data))
    return file


def search(recipe: Path, output: Path, *overrides: str) -> dict:
    """Into a folder that is told as people tell it: relative to where they are."""
    there = f"output={os.path.relpath(output)}"
    result = CliRunner().invoke(app, ["search", str(recipe), there, *overrides, "--json"])
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def output(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Of a finished search."""
    yield tmp_path_factory.mktemp("found") / "run"


def test_a_search_ends_in_a_table_a_page_a_recipe_and_a_verdict(recipe: Path, output: Path) -> None:
    facts = search(recipe, output)
    assert [trial["state"] for trial in facts["trials"]] == ["finished", "finished"]
    assert facts["trials"][0]["changes"]["method.skip"] == 250  # the recipe as it is comes first
    best = min(facts["trials"], key=lambda trial: trial["values"]["kid@2"])
    assert facts["best"] == best["number"]
    rows = pq.read_table(output / "search.parquet").to_pylist()
    assert [row["kid@2"] for row in rows] == [trial["values"]["kid@2"] for trial in facts["trials"]]
    assert metrics.newest(output / "search.jsonl")["search/finished"] == 2
    page = (output / "search.html").read_text()
    assert "What led where" in page and "Every trial" in page and "How they went" in page
    told = load(str(output / "best.yaml"))
    assert told.training.learning_rate == best["changes"]["training.learning_rate"]
    assert "gain" in facts["verdict"] and facts["verdict"] in (output / "search.md").read_text()


def test_all_trials_read_one_data_set_and_none_samples_it_again(recipe: Path, output: Path) -> None:
    search(recipe, output)
    (place,) = (output / "trajectories").iterdir()
    assert [key for key in open_commit_log(str(place)).store.keys("manifest")] == ["manifest/0001.json"]
    assert not list(output.glob("trials/*/trajectories"))
    assert not list(output.glob("trials/*/generate.jsonl"))


def test_a_finished_search_runs_nothing_again_and_goes_on_when_the_budget_grows(recipe: Path, output: Path) -> None:
    before = search(recipe, output)
    written = {file: file.stat().st_mtime_ns for file in output.glob("trials/*/trial.json")}
    after = search(recipe, output, "search.trials=3")
    assert after["trials"][:2] == before["trials"] and len(after["trials"]) == 3
    assert written.items() <= {file: file.stat().st_mtime_ns for file in output.glob("trials/*/trial.json")}.items()


@pytest.mark.parametrize("scheduler", ["asha", "median"])
def test_a_scheduler_stops_trials_and_leaves_no_placement_group(scheduler: str, recipe: Path, tmp_path: Path) -> None:
    space = "{method.skip: [250], training.learning_rate: {low: 1e-5, high: 1.0, log: true}}"
    facts = search(recipe, tmp_path, f"search.scheduler={scheduler}", "search.trials=5", f"search.space={space}")
    states = [trial["state"] for trial in facts["trials"]]
    assert "stopped early" in states and "finished" in states
    stopped = [trial for trial in facts["trials"] if trial["state"] == "stopped early"]
    assert not any(trial["values"] for trial in stopped)
    assert min(trial["curve"][-1][0] for trial in stopped) < 8  # one may be at its end before Tune asks it to stop
    assert {group["state"] for group in placement_group_table().values()} <= {"REMOVED"}


def test_several_objectives_end_in_a_front(recipe: Path, tmp_path: Path) -> None:
    facts = search(recipe, tmp_path, "search.objectives=[kid@1, training_hours]", "search.searcher=optuna")
    assert facts["front"] and facts["best"] in facts["front"]
    assert "What cannot be had at once" in (tmp_path / "search.html").read_text()
