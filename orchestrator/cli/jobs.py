"""cli/jobs.py."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from inspect import signature
from typing import Annotated

import typer

from fewstep.orchestrator.cli.app import AsJson, Overrides, RecipeArgument, answer, app, load_recipe

jobs = typer.Typer(help="Ask for jobs that were submitted from this machine, and end them.", no_args_is_help=True)
app.add_typer(jobs, name="jobs")


JobId = Annotated[str, typer.Argument(help="As `fewstep submit` and `fewstep jobs list` say it.")]


@app.command()
def submit(
    verb: Annotated[str, typer.Argument(help="What to do with the recipe, like run.")],
    recipe: RecipeArgument,
    overrides: Overrides = None,
    cluster: Annotated[str, typer.Option(help="A cluster file, or the name of one that comes with fewstep.")] = "",
    id: Annotated[str, typer.Option(help="A name for the job; made from verb and recipe by default.")] = "",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only print what would be sent or applied.")] = False,
    follow: Annotated[bool, typer.Option(help="Print the job's log until it ends.")] = True,
    as_json: AsJson = False,
) -> None:
    """Do it on a cluster instead of here. The same again finds the job that is there, or continues what failed."""
    from fewstep.orchestrator.submission import submit as submit_commands

    def act() -> Mapping[str, object]:
        _check_verb(verb)
        told = load_recipe(recipe, overrides)
        facts = submit_commands.submit(verb, told, recipe, cluster, id=id, dry_run=dry_run, follow=follow)
        if dry_run and not as_json:
            sys.stdout.write(f"{facts['shown']}\n")
        return facts

    answer(as_json, act)


@jobs.command("list")
def list_jobs(as_json: AsJson = False) -> None:
    """List them, the newest first, as they were last seen."""
    from fewstep.orchestrator.submission import submit

    answer(as_json, submit.listed)


@jobs.command()
def status(id: JobId, as_json: AsJson = False) -> None:
    """Ask the cluster what has become of a job, and say where its outputs are."""
    from fewstep.orchestrator.submission import submit

    answer(as_json, lambda: submit.status(id))


@jobs.command()
def logs(
    id: JobId,
    follow: Annotated[bool, typer.Option("--follow", help="Go on until the job ends.")] = False,
    as_json: AsJson = False,
) -> None:
    """Print what a job printed."""
    from fewstep.orchestrator.submission import submit

    answer(as_json, lambda: submit.logs(id, follow))


@jobs.command()
def stop(id: JobId, as_json: AsJson = False) -> None:
    """End a job. `fewstep submit` with the same recipe continues what it left."""
    from fewstep.orchestrator.submission import submit

    answer(as_json, lambda: submit.stop(id))


def _check_verb(verb: str) -> None:
    """Only what needs a recipe and nothing else can be submitted."""
    from fewstep.orchestrator.errors import BadInput, nearest

    calls = [command.callback for command in app.registered_commands if command.callback]
    needs = {
        call.__name__: [p.name for p in signature(call).parameters.values() if p.default is p.empty] for call in calls
    }
    verbs = [name for name, needed in needs.items() if needed == ["recipe"]]
    if verb not in verbs:
        raise BadInput(f"{verb!r} cannot be submitted{nearest(verb, verbs)}; one of {', '.join(verbs)} can")
