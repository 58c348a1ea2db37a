"""Defines the command line. Nothing heavy is imported before a command runs, so that --help answers at once."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping
from typing import Annotated

import typer

DONE, FAILED, BAD_INPUT, QUARANTINED = 0, 1, 2, 3

app = typer.Typer(
    help="Distill a diffusion model that needs 50 steps into a student that needs 1 to 8.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
RecipeArgument = Annotated[str, typer.Argument(help="A YAML file, or the name of a recipe that comes with fewstep.")]
RunArgument = Annotated[str, typer.Argument(help="The output of a run: its directory.")]
Overrides = Annotated[list[str] | None, typer.Argument(help="Fields to change, like method.student_steps=2.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout, all else on stderr.")]
Price = Annotated[float, typer.Option(help="Of an hour of one GPU (or of one worker where it has none).")]


def load_recipe(name: str, overrides: list[str] | None):  # noqa: ANN202 - Recipe, which is not imported yet
    """Read, override and check the recipe that a command was given. Raises BadInput."""
    from fewstep.orchestrator.recipe import parsing

    return parsing.load(name, overrides or [])


def answer(as_json: bool, verb: Callable[[], Mapping[str, object]]) -> None:
    """Run a verb; print its facts where asked; end with the exit code that says how it went."""
    from fewstep.orchestrator.errors import BadInput, Diverged

    try:
        facts = verb()
    except BadInput as error:
        sys.stderr.write(f"fewstep: {error}\n")
        raise typer.Exit(BAD_INPUT) from None
    except Diverged as error:
        sys.stderr.write(f"fewstep: {error}\n")
        raise typer.Exit(FAILED) from None
    except KeyboardInterrupt:
        sys.stderr.write("fewstep: interrupted; the same command continues\n")
        raise typer.Exit(FAILED) from None
    if as_json:
        sys.stdout.write(json.dumps(dict(facts)) + "\n")
    if facts.get("broken") or facts.get("failed"):
        raise typer.Exit(FAILED)
    if facts.get("quarantined"):
        raise typer.Exit(QUARANTINED)
