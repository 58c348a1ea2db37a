"""Defines the commands that import, check, mend and show data sets."""

from __future__ import annotations

from typing import Annotated

import typer

from fewstep.orchestrator.cli.app import AsJson, Overrides, RecipeArgument, answer, app, load_recipe

trajectories = typer.Typer(help="Look into a data set of trajectories.", no_args_is_help=True)
app.add_typer(trajectories, name="trajectories")


DataSet = Annotated[str, typer.Argument(help="The place of a data set, named by its plan's hash.")]


@app.command(name="import")
def import_data(
    recipe: RecipeArgument,
    source: Annotated[str, typer.Argument(help="A WebDataset tar, a folder of them, or a folder of the same files.")],
    store: Annotated[str, typer.Argument(help="Where data sets are kept: a folder, or s3://bucket/folder.")],
    overrides: Overrides = None,
    as_json: AsJson = False,
) -> None:
    """Take pictures or pairs of noise and sample that were made elsewhere over into a data set to train on."""
    from fewstep.orchestrator.workflow import datasets

    answer(as_json, lambda: datasets.import_data(load_recipe(recipe, overrides), source, store))


@app.command()
def verify(path: DataSet, as_json: AsJson = False) -> None:
    """Rehash every shard of a data set and name those that are broken."""
    from fewstep.orchestrator.workflow import inspection

    answer(as_json, lambda: inspection.verify(path))


@app.command()
def repair(path: DataSet, as_json: AsJson = False) -> None:
    """Generate the broken shards of a data set again, and nothing else."""
    from fewstep.orchestrator.workflow import datasets

    answer(as_json, lambda: datasets.repair(path))


@app.command()
def clean(
    path: DataSet,
    older_than: Annotated[str, typer.Option(help="Like 90s, 30m, 2h or 7d; at least twice a shard's deadline.")] = "2h",
    as_json: AsJson = False,
) -> None:
    """Remove what writers that lost or died left in a data set. Nothing that any version names."""
    from fewstep.orchestrator.workflow import inspection

    answer(as_json, lambda: inspection.clean(path, older_than))


@trajectories.command()
def show(
    path: DataSet,
    samples: Annotated[int, typer.Option(min=1, help="Paths to decode.")] = 8,
    out: Annotated[str, typer.Option(help="A PNG of them along the path.")] = "trajectories.png",
    as_json: AsJson = False,
) -> None:
    """Say what a data set is, how it was made and how big it is, and draw some of it."""
    from fewstep.orchestrator.workflow import inspection

    answer(as_json, lambda: inspection.show(path, samples, out))
