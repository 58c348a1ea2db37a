"""Solvers whose noise is measured of a teacher first."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from fewstep.orchestrator.evaluation.evaluator_pool import evaluation_prompts, open_pool
from fewstep.orchestrator.evaluation.system import System
from fewstep.orchestrator.recipe.parsing import parse
from tests.support import tiny

pytestmark = pytest.mark.slow


def test_a_stochastic_solver_is_calibrated_once_for_a_teacher_and_guidance(cluster: None, tmp_path: Path) -> None:
    recipe = parse(tiny.recipe_data(tmp_path))
    written = set[tuple[str, int]]()
    for steps in (1, 4):
        with open_pool(recipe, evaluation_prompts(recipe.evaluation), tmp_path) as pool:
            (part,) = pool.measure([System("teacher", "analytic-dpm", steps, 2.0)], 6, "sampling")
        assert len(part.features) == 6
        written |= {(file.name, file.stat().st_mtime_ns) for file in (tmp_path / "features").glob("variances-*.json")}
    ((name, _),) = written
    variances = json.loads((tmp_path / "features" / name).read_text())["variances"]
    assert name.startswith("variances-2-") and variances[0] == 0 < variances[1] < variances[-1]
