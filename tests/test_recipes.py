"""Every recipe that comes with fewstep."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from fewstep.orchestrator.cli.main import app
from fewstep.orchestrator.datasets.sources import check_sources as check_recipe
from fewstep.orchestrator.planning.preflight import preflight
from fewstep.orchestrator.recipe.parsing import RECIPES, find, load, parse
from fewstep.orchestrator.teachers.teacher import Teacher
from fewstep.orchestrator.workflow.comparison import check, read
from tests.support import tiny

REAL = sorted((RECIPES / "real").glob("*.yaml"))
FILES = sorted({*RECIPES.rglob("*.yaml")} - {*REAL})


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(RECIPES)))
def test_every_shipped_recipe_fits_its_teacher(file: Path) -> None:
    recipe = load(str(file))
    check_recipe(recipe)
    preflight(recipe, Teacher(recipe.teacher))


@pytest.mark.parametrize("name", [file.stem for file in REAL])
def test_every_real_recipe_fits_its_teacher_and_says_what_a_worker_holds(name: str, tmp_path: Path) -> None:
    said = find(name).read_text()
    assert "Not run on a GPU yet." in said
    (tmp_path / "prompts.txt").write_text("a cat\na dog\n")
    given = {"trajectories.prompts": tmp_path / "prompts.txt", "data.images": tmp_path}
    words = [f"{field}={place}" for field, place in given.items() if f"give {field} and" in said]
    asked = ["plan", name, "--offline", "--json", *words, f"evaluation.prompts={tmp_path / 'prompts.txt'}"]
    result = CliRunner().invoke(app, asked)
    assert result.exit_code == 0, result.output
    assert f" Memory: {json.loads(result.stdout)['worker_memory_gb']} GB a worker" in said


@pytest.mark.parametrize("teacher", ["emoji", "fashion"])
def test_the_compared_recipes_are_judged_alike(teacher: str) -> None:
    recipes = read([str(file) for file in sorted((RECIPES / "compare" / teacher).glob("*.yaml"))])
    check(recipes)
    assert {recipe.evaluation.samples for recipe in recipes.values()} == {2000}


def test_a_resolved_recipe_reads_as_what_it_was(tmp_path: Path) -> None:
    data = tiny.recipe_data(tmp_path)
    told = data["trajectories"]
    assert isinstance(told, dict)
    listed = {name: value for name, value in told.items() if name != "guidance_scale"} | {"guidance_scales": [1, 2]}
    recipe = parse({**data, "trajectories": listed})
    assert parse(recipe.resolved()).resolved() == recipe.resolved()
