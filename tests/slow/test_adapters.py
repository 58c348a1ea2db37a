"""A LoRA with and without the merged network, from training to its report."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from fewstep.orchestrator.recipe.parsing import parse
from fewstep.orchestrator.teachers.folders import holds_pipeline
from fewstep.orchestrator.workflow import stages
from tests.support import tiny

pytestmark = pytest.mark.slow


@pytest.mark.usefixtures("cluster")
def test_a_lora_is_exported_again_without_the_merged_network_and_judged_alike(tmp_path: Path) -> None:
    told = dict(tiny.recipe_data(tmp_path)) | {
        "method": {"name": "lcm-lora", "teacher_step": "stored", "skip": 250, "lora_rank": 4}
    }
    run, found = tmp_path / "run", []
    for merged in (True, False):
        recipe = parse({**told, "export": {"merged": merged}, "output": str(run)})
        if merged:
            stages.train(recipe)
        stages.evaluate(recipe)
        assert holds_pipeline(run / "student") == (run / "student" / "unet").exists() == merged
        assert ("load_lora_weights" in (run / "report.html").read_text()) != merged
        found.append(json.loads((run / "evaluation" / "metrics.json").read_text()))
    for whole, alone in zip(*found, strict=True):
        assert (whole["system"], whole["steps"]) == (alone["system"], alone["steps"])
        assert alone["value"] == pytest.approx(whole["value"], rel=0.01, abs=1e-3)  # of features in float16
