"""A teacher of one's own through all of fewstep, on Ray."""

from __future__ import annotations

from pathlib import Path

import pytest

from fewstep.orchestrator.errors import BadInput
from fewstep.orchestrator.recipe.parsing import parse
from fewstep.orchestrator.recipe.recipe import Recipe
from fewstep.orchestrator.workflow import stages
from fewstep.orchestrator.workflow.plan import plan
from tests.support import tiny
from tests.support.data_sets import fill, new_commit_log

pytestmark = pytest.mark.slow


@pytest.fixture
def recipe(tmp_path: Path) -> Recipe:
    """Of points, without an evaluation."""
    told = {name: dict(section) for name, section in tiny.recipe_data(tmp_path).items() if isinstance(section, dict)}
    (tmp_path / "sides.txt").write_text("left\nright\n")
    told["trajectories"] |= {"prompts": str(tmp_path / "sides.txt")}
    del told["evaluation"]
    told |= {"teacher": {"factory": "tests.support.own_models:points"}, "method": {"name": "lcm-lora", "lora_rank": 2}}
    return parse({**told, "output": str(tmp_path / "run")})


@pytest.mark.usefixtures("cluster")
def test_points_are_distilled_from_end_to_end_and_not_judged(recipe: Recipe, tmp_path: Path) -> None:
    assert plan(recipe, 0.0)["rows"] == 20
    facts = stages.run(recipe)
    student = Path(str(facts["student"]))
    assert "print(image.shape)" in (student / "README.md").read_text()
    assert "['left']" in (tmp_path / "run" / "report.html").read_text().replace("&#x27;", "'")
    assert not (tmp_path / "run" / "evaluation").exists()
    with pytest.raises(BadInput, match="the teacher's samples are no pictures, so that nothing is judged"):
        stages.evaluate(recipe)


def test_a_compiled_teacher_samples_the_same_bytes_again(recipe: Recipe, tmp_path: Path) -> None:
    compiled = recipe.model_copy(update={"teacher": recipe.teacher.model_copy(update={"compile": True})})
    ledgers = [new_commit_log(compiled, tmp_path / name) for name in ("first", "second")]
    for commit_log in ledgers:
        fill(commit_log)
    first, second = (commit_log.manifest(1).content_hash for commit_log in ledgers)
    assert first == second
