"""What a recipe and a cluster file may hold, as users and editors are told it."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from jsonschema import Draft202012Validator
from pydantic import BaseModel
from typer.testing import CliRunner

from fewstep.clusters import CLUSTERS, KINDS
from fewstep.methods import METHODS
from fewstep.orchestrator.cli.main import app
from fewstep.orchestrator.recipe.json_schema import cluster_schema, recipe_schema
from fewstep.orchestrator.recipe.parsing import RECIPES, load
from fewstep.orchestrator.recipe.recipe import Recipe
from fewstep.orchestrator.recipe.search import Span
from fewstep.orchestrator.recipe.section import Section

FILES = sorted(RECIPES.rglob("*.yaml"))
MODELS = [Recipe, Span, *KINDS.values()]
RECIPE, CLUSTER = Draft202012Validator(recipe_schema()), Draft202012Validator(cluster_schema(KINDS))


def sections(model: type[BaseModel]) -> Iterator[type[BaseModel]]:
    """A model and all that it holds."""
    yield model
    for field in model.model_fields.values():
        for inner in (field.annotation, *getattr(field.annotation, "__args__", ())):
            if isinstance(inner, type) and issubclass(inner, BaseModel):
                yield from sections(inner)


def command(*words: str) -> str:
    result = CliRunner().invoke(app, ["recipe", *words], env={"COLUMNS": "200"})
    assert result.exit_code == 0, result.output
    return result.stdout


@pytest.mark.parametrize("model", {inner for model in MODELS for inner in sections(model)}, ids=lambda m: m.__name__)
def test_every_field_says_what_it_is_in_a_sentence(model: type[BaseModel]) -> None:
    for name, field in model.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, Section):
            continue  # its class says it
        assert (field.description or "").endswith("."), name


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(RECIPES)))
def test_every_shipped_recipe_is_as_the_schema_has_it(file: Path) -> None:
    RECIPE.validate(yaml.safe_load(file.read_text()))


def test_a_resolved_recipe_is_as_the_schema_has_it() -> None:
    RECIPE.validate(json.loads(json.dumps(load("emoji-lcm").resolved())))


@pytest.mark.parametrize("file", sorted(CLUSTERS.glob("*.yaml")), ids=lambda file: file.stem)
def test_every_shipped_cluster_file_is_as_the_schema_has_it(file: Path) -> None:
    data = yaml.safe_load(file.read_text())
    CLUSTER.validate(data)
    assert not CLUSTER.is_valid({**data, "port_": 1})


@pytest.mark.parametrize("section", ["", "teacher", "trajectories", "method", "training", "evaluation", "resources"])
def test_a_mistyped_key_is_not_as_the_schema_has_it(section: str) -> None:
    data = yaml.safe_load((RECIPES / "emoji-lcm.yaml").read_text())
    (data[section] if section else data)["stesp"] = 1
    assert not RECIPE.is_valid(data)


@pytest.mark.parametrize(
    ("section", "changes"),
    [
        ("training", {"steps": 0}),
        ("training", {"zero_stage": 4}),
        ("trajectories", {"batch_size": "automatic"}),
        ("method", {"name": "lcn"}),
        ("method", {"name": "reflow"}),  # with the fields of another
        ("search", {"space": {"method.skip": 20}}),
    ],
)
def test_a_value_that_the_loader_refuses_is_not_as_the_schema_has_it(section: str, changes: dict[str, object]) -> None:
    data = yaml.safe_load((RECIPES / "emoji-lcm.yaml").read_text())
    data[section] = data.get(section, {}) | changes
    assert not RECIPE.is_valid(data)


def test_one_number_is_a_guidance_scale_as_a_range_is() -> None:
    data = yaml.safe_load((RECIPES / "emoji-lcm.yaml").read_text())
    for scale in (3, 3.0, [1, 5.0]):
        data["trajectories"]["guidance_scale"] = scale
        RECIPE.validate(data)


def test_the_page_is_what_the_descriptions_make() -> None:
    page = (RECIPES / "README.md").read_text()
    assert page == command("--markdown"), "run: fewstep recipe --markdown > recipes/README.md"


def test_the_command_lists_every_field_of_a_section_and_one_alone() -> None:
    facts = json.loads(command("--fields", "training", "--json"))
    (section,) = facts["sections"]
    assert [field["name"] for field in section["fields"]] == list(
        Recipe.model_fields["training"].annotation.model_fields
    )
    text = command("training.warmup_steps")
    assert "integer >= 0" in text and "rises linearly" in text and "decay_steps" not in text


def test_the_command_lists_the_fields_of_methods_and_of_clusters() -> None:
    (section,) = json.loads(command("lcm", "--json"))["sections"]
    assert [field["name"] for field in section["fields"]] == [
        field.name for field in dataclasses.fields(METHODS["lcm"])
    ]
    assert len(json.loads(command("method", "--json"))["sections"]) == len(METHODS)
    assert "gpus_per_node" in command("--cluster", "slurm")
    assert json.loads(command("--schema", "--cluster")) == CLUSTER.schema
    assert json.loads(command("--schema")) == RECIPE.schema


def test_a_word_that_names_nothing_is_refused_with_the_nearest_that_does() -> None:
    result = CliRunner().invoke(app, ["recipe", "training.stesp"])
    assert result.exit_code == 2 and "did you mean 'training.steps'?" in result.output


def test_a_section_is_shown_without_torch_or_ray() -> None:
    code = (
        "import sys; from typer.testing import CliRunner; from fewstep.orchestrator.cli.main import app; "
        "assert CliRunner().invoke(app, ['recipe', 'training']).exit_code == 0; "
        "assert not {'torch', 'ray', 'diffusers'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
