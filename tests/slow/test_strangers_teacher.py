"""A teacher as others make one, through real trainings: what the judging says of students, good and ruined."""

from __future__ import annotations

from pathlib import Path

import pytest

from fewstep.orchestrator.errors import Diverged
from fewstep.orchestrator.evaluation.results import EvaluationResults
from fewstep.orchestrator.recipe.parsing import parse
from fewstep.orchestrator.recipe.recipe import Recipe
from fewstep.orchestrator.workflow import stages

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("cluster")]

METHODS: dict[str, dict[str, object]] = {
    "consistency": {"name": "consistency", "grid": 12, "sampling_ema_decay": 0.97},
    "dmd": {"name": "dmd", "guidance_scale": 1.0},
    "add": {"name": "add", "student_steps": 1, "guidance_scale": 1.0, "distill_weight": 0.0},
}
STEPS = {"consistency": 300, "dmd": 200, "add": 400}


def recipe_of(method: str, folder: Path, **training: object) -> Recipe:
    """The method in one step, or in as many as it is made for, on the clothes."""
    trajectories = {"samples": 1024, "num_inference_steps": 25, "save": "ends", "batch_size": 64, "shard_size": 256}
    return parse(
        {
            "teacher": {"factory": "tests.support.pictures:clothes"},
            "trajectories": {**trajectories, "guidance_scale": 1.0, "store": str(folder / "trajectories")},
            "method": METHODS[method],
            "training": {
                "steps": STEPS[method],
                "batch_size": 64,
                "learning_rate": 3e-4,
                "warmup_steps": 20,
                "zero_stage": 1,
                **training,
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
