"""Weights & Biases and MLflow through their own libraries, without a server; `pip install -e .[trackers]` first."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from fewstep.orchestrator.observability.trackers import Trackers
from fewstep.orchestrator.recipe.parsing import parse
from fewstep.orchestrator.recipe.recipe import Recipe
from tests.support import tiny

pytestmark = pytest.mark.slow


@pytest.fixture
def recipe(tmp_path: Path) -> Recipe:
    return parse({**tiny.recipe_data(tmp_path), "output": str(tmp_path / "run"), "trackers": ["wandb"]})


def follow(recipe: Recipe, folder: Path, steps: range) -> None:
    """Rows of some steps, and one picture."""
    trackers = Trackers(recipe, folder)
    trackers.open(steps.start)
    for step in steps:
        trackers.log(step, {"loss/student/consistency": 1 / (1 + step), "grad_norm/student": float("nan")})
    trackers.picture(steps[-1], Image.new("RGB", (8, 8)))
    trackers.close()


def test_wandb_keeps_a_run(recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    folder = tmp_path / "run/rounds/1-lcm"
    folder.mkdir(parents=True)
    follow(recipe, folder, range(3))
    (kept,) = folder.glob("wandb/offline-run-*/run-*.wandb")
    assert kept.stat().st_size > 0 and list(folder.glob("wandb/offline-run-*/files/media/images/samples_2_*.png"))


def test_mlflow_goes_on_with_the_run_of_a_round(
    recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    mlflow.set_tracking_uri((tmp_path / "mlflow").as_uri())
    followed = recipe.model_copy(update={"trackers": ("mlflow",)})
    folder = tmp_path / "run/rounds/1-lcm"
    follow(followed, folder, range(3))
    follow(followed, folder, range(3, 5))
    (run,) = mlflow.search_runs(experiment_names=["fewstep"], output_format="list")
    history = mlflow.MlflowClient().get_metric_history(run.info.run_id, "loss/student/consistency")
    assert [point.step for point in history] == [0, 1, 2, 3, 4]
    assert run.data.tags["mlflow.runName"] == "run/1-lcm" and "grad_norm/student" not in run.data.metrics
