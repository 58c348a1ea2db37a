"""Show what a recipe or a cluster file may hold: for people, for editors, and as recipes/README.md."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from typing import Annotated

import typer

from fewstep.orchestrator.cli.app import AsJson, answer, app


@app.command()
def recipe(
    word: Annotated[
        str, typer.Argument(help="A section, a method, a kind of cluster or a field, to see it alone.")
    ] = "",
    fields: Annotated[
        bool, typer.Option("--fields", help="List fields, types, defaults and meanings (default).")
    ] = False,
    schema: Annotated[bool, typer.Option("--schema", help="Print a JSON schema instead, for editors.")] = False,
    markdown: Annotated[bool, typer.Option("--markdown", help="Print recipes/README.md instead.")] = False,
    cluster: Annotated[bool, typer.Option("--cluster", help="Describe cluster files instead of recipes.")] = False,
    as_json: AsJson = False,
) -> None:
    """List every field that a recipe may have, with its type, its default and what it means."""
    from fewstep.orchestrator.errors import BadInput

    def act() -> Mapping[str, object]:
        if fields + schema + markdown > 1:
            raise BadInput("--fields, --schema and --markdown each print something else; choose one of them")
        text, facts = _schema(cluster) if schema else _markdown() if markdown else _fields(word, cluster)
        if not as_json:
            sys.stdout.write(text)
        return facts

    answer(as_json, act)


def _fields(word: str, is_cluster: bool) -> tuple[str, Mapping[str, object]]:
    from dataclasses import asdict

    from rich.console import Console

    from fewstep.orchestrator.recipe.json_schema import recipe_schema
    from fewstep.orchestrator.workflow.field_reference import cluster_sections, recipe_sections, select, table_of

    console = Console(highlight=False)
    sections = select(cluster_sections(_cluster_schema()) if is_cluster else recipe_sections(recipe_schema()), word)
    with console.capture() as capture:
        for section in sections:
            console.print(table_of(section), "")
    return capture.get(), {"sections": [asdict(section) for section in sections]}


def _schema(is_cluster: bool) -> tuple[str, Mapping[str, object]]:
    from fewstep.orchestrator.recipe.json_schema import recipe_schema

    schema = _cluster_schema() if is_cluster else recipe_schema()
    return json.dumps(schema, indent=1) + "\n", schema


def _markdown() -> tuple[str, Mapping[str, object]]:
    from fewstep.orchestrator.recipe.json_schema import recipe_schema
    from fewstep.orchestrator.recipe.parsing import RECIPES
    from fewstep.orchestrator.workflow.field_reference import cluster_sections, markdown, recipe_sections

    text = markdown(recipe_sections(recipe_schema()), cluster_sections(_cluster_schema()), RECIPES)
    return text, {"markdown": text}


def _cluster_schema() -> dict[str, object]:
    from fewstep.clusters import KINDS
    from fewstep.orchestrator.recipe.json_schema import cluster_schema

    return cluster_schema(KINDS)
