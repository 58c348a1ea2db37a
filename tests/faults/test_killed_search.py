"""`kill -9` the driver of a search: what is finished is not run again, and what is not goes on from its checkpoint."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from tests.support import tiny
from tests.support.driver import finish, kill_when, start


def steps_of(trial: Path) -> list[int]:
    """Every step that a trial has reported, those that it repeated twice."""
    rows = [json.loads(line) for line in next(trial.glob("rounds/*/metrics.jsonl")).read_text().splitlines()]
    return [row["step"] for row in rows if "train/step" in row]


@pytest.mark.faults
def test_a_killed_search_runs_no_finished_trial_again_and_continues_the_other(tmp_path: Path) -> None:
    data = tiny.recipe_data(tmp_path)
    data["method"] = {"name": "lcm", "teacher_step": "stored", "skip": 250}
    data["training"] |= {"steps": 60, "checkpoint_every": 5}  # pyright: ignore[reportOperatorIssue]
    data["search"] = tiny.search_data(tmp_path) | {"concurrent": 1}
    recipe, output = tmp_path / "recipe.yaml", tmp_path / "run"
    recipe.write_text(yaml.safe_dump(data))
    first, second = (output / "trials" / f"{number:04d}" for number in (0, 1))

    kill_when(
        start(recipe, output, "search"),
        lambda: (
            (first / "trial.json").exists() and len(list(second.glob("rounds/*/checkpoints/*/checkpoint.json"))) > 1
        ),
    )
    assert not (second / "trial.json").exists(), "the kill came too late to hit a trial"
    before = {file: file.stat().st_mtime_ns for file in first.rglob("*") if file.is_file()}
    facts = finish(start(recipe, output, "search"))
    assert {file: file.stat().st_mtime_ns for file in first.rglob("*") if file.is_file()} == before
    assert [trial["state"] for trial in facts["trials"]] == ["finished", "finished"]  # pyright: ignore
    assert steps_of(second).count(1) == 1 and steps_of(second)[-1] == 60
