"""`kill -9` the driver in the middle of each stage; the same command continues and ends as if undisturbed."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from fewstep.orchestrator.datasets.commit_log import open_commit_log
from tests.support import tiny
from tests.support.driver import finish, kill_when, start


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny recipe with enough work in each stage for a kill to fall into it."""
    folder = tmp_path_factory.mktemp("killed")
    data = tiny.recipe_data(folder)
    data["method"] = {"name": "lcm", "teacher_step": "stored", "skip": 250}
    data["trajectories"] |= {"samples": 160, "shard_size": 4}  # pyright: ignore[reportOperatorIssue]
    data["training"] |= {"steps": 60, "checkpoint_every": 5}  # pyright: ignore[reportOperatorIssue]
    file = folder / "recipe.yaml"
    file.write_text(yaml.safe_dump(data))
    return file


def facts(output: Path) -> dict[str, object]:
    """What has to be the same: the data, the batches, the weights and what was measured on them."""
    lineage = json.loads((output / "rounds/1-lcm/result/lineage.json").read_text())
    measured = json.loads((output / "evaluation/metrics.json").read_text())
    return {
        "content": json.loads((output / "run.json").read_text())["manifests"]["lcm"]["content_hash"],
        "batches": lineage["batches"],
        "weights": (output / "rounds/1-lcm/result/result.safetensors").read_bytes(),
        "metrics": [(row["system"], row["steps"], row["metric"], row["value"]) for row in measured],
    }


@pytest.mark.faults
def test_a_run_killed_in_every_stage_ends_like_an_undisturbed_one(recipe: Path, tmp_path: Path) -> None:
    finish(start(recipe, tmp_path / "calm"))
    output = tmp_path / "killed"

    def some(pattern: str, count: int = 1) -> Callable[[], bool]:
        return lambda: len(list(output.glob(pattern))) >= count

    kill_when(start(recipe, output), some("trajectories/*/commits/0*.json", 5))
    assert not list(output.glob("rounds")), "the kill came too late to hit generation"
    kill_when(start(recipe, output), some("rounds/1-lcm/checkpoints/*/checkpoint.json", 2))
    assert not (output / "rounds/1-lcm/result").exists(), "the kill came too late to hit training"
    kill_when(start(recipe, output), some("evaluation/features/*"))
    assert not (output / "evaluation/metrics.json").exists(), "the kill came too late to hit evaluation"
    finish(start(recipe, output))
    assert facts(output) == facts(tmp_path / "calm")


@pytest.mark.faults
def test_two_drivers_with_a_cluster_each_make_one_data_set(recipe: Path, tmp_path: Path) -> None:
    def generating(name: str, store: str) -> subprocess.Popen[str]:
        return start(recipe, tmp_path / name, "generate", f"trajectories.store={tmp_path / store}")

    finish(generating("alone", "calm"))
    for driver in [generating("first", "shared"), generating("second", "shared")]:
        finish(driver)
    calm, shared = (open_commit_log(str(next((tmp_path / store).iterdir()))) for store in ("calm", "shared"))
    found = shared.verify()
    assert found.broken == () and found.content_hash == calm.newest().content_hash
    commits, _ = shared.commits()
    for commit in commits.values():
        assert shared.store.keys(commit.file_key.rpartition("/")[0]) == [commit.file_key]  # losers take theirs away
