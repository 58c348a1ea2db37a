"""Every recipe that comes with fewstep."""

from __future__ import annotations

from pathlib import Path

import pytest

from orchestrator.compare import check, read
from orchestrator.preflight import preflight
from orchestrator.recipe import RECIPES, load, parse
from orchestrator.sources import check as check_recipe
from orchestrator.teacher import Teacher
from tests import tiny

FILES = sorted(RECIPES.rglob("*.yaml"))


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(RECIPES)))
def test_every_shipped_recipe_fits_its_teacher(file: Path) -> None:
    recipe = load(str(file))
    check_recipe(recipe)
    preflight(recipe, Teacher(recipe.teacher))


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
