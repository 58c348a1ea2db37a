"""Defines the commands that submit jobs to a cluster, follow them and end them."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Annotated

import typer

from fewstep.orchestrator.cli.app import AsJson, Overrides, RecipeArgument, answer, app, load_recipe

jobs = typer.Typer(help="Ask for jobs that were submitted from this machine, and end them.", no_args_is_help=True)
app.add_typer(jobs, name="jobs")
VERBS = ("run", "plan", "generate", "train", "export", "evaluate", "teacher", "search")  # that need a recipe alone
WITHOUT_TRAINING = ("plan", "generate", "teacher")  # those of them whose recipe may lack that section
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
    from fewstep.orchestrator.submission import jobs as submission

    def act() -> Mapping[str, object]:
        resolved = _recipe_for(verb, recipe, overrides)
        facts = submission.submit(verb, resolved, recipe, cluster, id=id, dry_run=dry_run, follow=follow)
        if dry_run and not as_json:
            sys.stdout.write(f"{facts['shown']}\n")
        return facts

    answer(as_json, act)


@jobs.command("list")
def list_jobs(as_json: AsJson = False) -> None:
    """List them, the newest first, as they were last seen."""
    from fewstep.orchestrator.submission import jobs as submission

    answer(as_json, submission.listed)


@jobs.command()
def status(id: JobId, as_json: AsJson = False) -> None:
    """Ask the cluster what has become of a job, and say where its outputs are."""
    from fewstep.orchestrator.submission import jobs as submission

    answer(as_json, lambda: submission.status(id))


@jobs.command()
def logs(
    id: JobId,
    follow: Annotated[bool, typer.Option("--follow", help="Go on until the job ends.")] = False,
    as_json: AsJson = False,
) -> None:
    """Print what a job printed."""
    from fewstep.orchestrator.submission import jobs as submission

    answer(as_json, lambda: submission.logs(id, follow))


@jobs.command()
def stop(id: JobId, as_json: AsJson = False) -> None:
    """End a job. `fewstep submit` with the same recipe continues what it left."""
    from fewstep.orchestrator.submission import jobs as submission

    answer(as_json, lambda: submission.stop(id))


def _recipe_for(verb: str, recipe: str, overrides: list[str] | None):  # noqa: ANN202 - Recipe, as in `load_recipe`
    """The recipe of a job. Raises BadInput for what cannot be submitted, and where the recipe lacks what it needs."""
    from fewstep.orchestrator.errors import BadInput, nearest
    from fewstep.orchestrator.recipe.parsing import check_training

    if verb not in VERBS:
        raise BadInput(f"{verb!r} cannot be submitted{nearest(verb, VERBS)}; one of {', '.join(VERBS)} can")
    loaded = load_recipe(recipe, overrides)
    if verb not in WITHOUT_TRAINING:
        check_training(loaded)
    return loaded
