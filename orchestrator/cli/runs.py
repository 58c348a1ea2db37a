"""Defines the commands that plan, do and show the stages of a run."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import typer

from fewstep.orchestrator.cli.app import AsJson, Overrides, Price, RecipeArgument, RunArgument, answer, app, load_recipe


@app.command()
def run(recipe: RecipeArgument, overrides: Overrides = None, as_json: AsJson = False) -> None:
    """Do it all: generate, train, export, evaluate, report. The same command continues an interrupted run."""
    from fewstep.orchestrator.workflow import stages

    answer(as_json, lambda: stages.run(load_recipe(recipe, overrides)))


@app.command()
def plan(
    recipe: RecipeArgument,
    overrides: Overrides = None,
    price: Price = 0.0,
    offline: Annotated[bool, typer.Option(help="From configurations alone: no weights, no network, no clock.")] = False,
    as_json: AsJson = False,
) -> None:
    """Say what would be generated, what is already there, what the rest costs and what a training worker holds."""
    from fewstep.orchestrator.workflow import plan as plan_commands

    answer(as_json, lambda: plan_commands.plan(load_recipe(recipe, overrides), price, offline=offline))


@app.command()
def generate(
    recipe: RecipeArgument,
    overrides: Overrides = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be done, as `plan`.")] = False,
    price: Price = 0.0,
    as_json: AsJson = False,
) -> None:
    """Sample the teacher's trajectories into Parquet."""

    def act() -> Mapping[str, object]:
        loaded = load_recipe(recipe, overrides)
        if dry_run:
            from fewstep.orchestrator.workflow import plan as plan_commands

            return plan_commands.plan(loaded, price)
        from fewstep.orchestrator.workflow import datasets

        return datasets.generate(loaded)

    answer(as_json, act)


@app.command()
def train(recipe: RecipeArgument, overrides: Overrides = None, as_json: AsJson = False) -> None:
    """Train the student's rounds from the generated trajectories."""
    from fewstep.orchestrator.workflow import stages

    answer(as_json, lambda: stages.train(load_recipe(recipe, overrides)))


@app.command()
def export(
    recipe: RecipeArgument,
    overrides: Overrides = None,
    push_to_hub: Annotated[str, typer.Option(metavar="ID", help="Upload it too; the token is HF_TOKEN's.")] = "",
    private: Annotated[bool, typer.Option("--private", help="Let nobody else see what is uploaded.")] = False,
    as_json: AsJson = False,
) -> None:
    """Save the trained student as an ordinary diffusers pipeline; a LoRA's adapters alone with export.merged=false."""
    from fewstep.orchestrator.workflow import stages

    answer(as_json, lambda: stages.export(load_recipe(recipe, overrides), push_to_hub, private=private))


@app.command()
def evaluate(recipe: RecipeArgument, overrides: Overrides = None, as_json: AsJson = False) -> None:
    """Measure the exported student against its teacher, and write the report."""
    from fewstep.orchestrator.workflow import stages

    answer(as_json, lambda: stages.evaluate(load_recipe(recipe, overrides)))


@app.command()
def watch(
    run: RunArgument,
    once: Annotated[bool, typer.Option("--once", help="Say how it stands now, and end.")] = False,
    as_json: AsJson = False,
) -> None:
    """Show how a run stands, until it ends: stages, rates, losses, quality, how old the last checkpoint is."""
    from fewstep.orchestrator.workflow.status import watch

    answer(as_json, lambda: watch(Path(run), once=once))


@app.command()
def report(run: RunArgument, as_json: AsJson = False) -> None:
    """Write report.html again, from what a run has so far."""
    from fewstep.orchestrator.workflow.report import report

    answer(as_json, lambda: report(run))


@app.command()
def teacher(
    recipe: RecipeArgument,
    overrides: Overrides = None,
    prompt: Annotated[str, typer.Option(help="A prompt with many right answers, sampled 16 times.")] = "",
    as_json: AsJson = False,
) -> None:
    """Measure the teacher alone: its reference, its best few-step baselines, and whether it is worth distilling."""
    from fewstep.orchestrator.workflow import stages

    answer(as_json, lambda: stages.teacher(load_recipe(recipe, overrides), prompt))


@app.command()
def compare(
    recipes: Annotated[list[str], typer.Argument(help="Recipes, and fields to change in all, like training.steps=9.")],
    output: Annotated[str, typer.Option(help="Where the runs, their trajectories, the table and the picture go.")],
    seeds: Annotated[int, typer.Option(min=1, help="How often each recipe is trained, from its own seed on.")] = 1,
    as_json: AsJson = False,
) -> None:
    """Run several recipes on one teacher and put them into one table and one picture. The same command continues."""
    from fewstep.orchestrator.workflow import comparison

    answer(as_json, lambda: comparison.compare(comparison.read(recipes), Path(output), seeds))


@app.command()
def sample(
    student: Annotated[str, typer.Argument(help="An exported student, or the output of its run.")],
    prompts: Annotated[list[str], typer.Argument(help="What to paint, one picture each.")],
    steps: Annotated[int, typer.Option(min=0, help="0 is what the student was made for.")] = 0,
    guidance_scale: Annotated[float, typer.Option(min=0, help="0 is the recipe's.")] = 0.0,
    seed: Annotated[int, typer.Option(help="Of the noise that both start from.")] = 0,
    teacher: Annotated[str, typer.Option(help="Its folder, where it is no longer where the student was made.")] = "",
    out: Annotated[str, typer.Option(help="A PNG.")] = "sample.png",
    as_json: AsJson = False,
) -> None:
    """Paint with a student and with its teacher, from the same noise, into one picture."""
    from fewstep.orchestrator.workflow import side_by_side

    request = side_by_side.Request(prompts, steps, guidance_scale, seed, teacher)
    answer(as_json, lambda: side_by_side.sample(student, request, Path(out)))


@app.command()
def search(recipe: RecipeArgument, overrides: Overrides = None, as_json: AsJson = False) -> None:
    """Try many values of a recipe's fields on the same data, and judge the best fairly. The same command continues."""
    from fewstep.orchestrator.search import driver as search_commands

    answer(as_json, lambda: search_commands.search(load_recipe(recipe, overrides)))


@app.command()
def methods(as_json: AsJson = False) -> None:
    """List the methods: paper, networks, rounds, and what a search may vary."""
    from fewstep.orchestrator.workflow import method_table

    answer(as_json, method_table.show)
