"""A teacher as others make one, through real trainings: what is said of its students."""

from __future__ import annotations

from pathlib import Path

import pytest

from fewstep.orchestrator.evaluation.results import EvaluationResults
from fewstep.orchestrator.recipe.parsing import parse
from fewstep.orchestrator.recipe.recipe import Recipe
from fewstep.orchestrator.workflow import stages

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("cluster")]

METHODS: dict[str, dict[str, object]] = {
    "consistency": {"name": "consistency", "grid": 12, "sampling_ema_decay": 0.97},
    "dmd": {"name": "dmd", "guidance_scale": 1.0},
}
STEPS = {"consistency": 150, "dmd": 120}


def recipe_of(method: str, folder: Path) -> Recipe:
    """A method on the clothes, judged at one and two steps."""
    trajectories = {"samples": 1024, "num_inference_steps": 25, "save": "ends", "batch_size": 64, "shard_size": 256}
    return parse(
        {
            "teacher": {"factory": "tests.support.pictures:clothes"},
            "trajectories": {**trajectories, "guidance_scale": 1.0, "store": str(folder / "trajectories")},
            "method": METHODS[method],
            "training": {
                "steps": STEPS[method],
                "batch_size": 32,
                "learning_rate": 3e-4,
                "warmup_steps": 20,
                "zero_stage": 1,
            },
            "evaluation": {
                "samples": 512,
                "selection_samples": 256,
                "steps": [1, 2],
                "guidance_scale": 1.0,
                "guidance_scales": [1.0],
                "solvers": ["ddim", "dpm++"],
                "baselines": str(folder / "teacher"),
            },
            "resources": {"workers": 2, "generators": 2},
            "output": str(folder / method),
        }
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One data set, and one measure of the teacher."""
    return tmp_path_factory.mktemp("clothes")


@pytest.mark.parametrize("method", ["consistency", "dmd"])
def test_what_is_called_better_looks_right_and_keeps_half_of_the_teachers_recall(
    method: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stages.run(recipe_of(method, folder))
    assert "its decode clamps or squashes pictures" in "".join(capsys.readouterr())
    found = EvaluationResults.read(folder / method / "evaluation")
    for steps in found.steps:
        metrics = {
            metric: (found.find("student", steps, metric).value, found.find("teacher", 50, metric).value)
            for metric in ("recall", "contrast", "brightness")
        }
        is_called_better = any(claim.holds for claim in found.claims if claim.steps == steps)
        recall, its_recall = metrics.pop("recall")
        looks_right = all(abs(mine - its) < 0.25 * its + 0.02 for mine, its in metrics.values())
        assert looks_right and recall >= its_recall / 2 or not is_called_better
