"""The command line. Nothing heavy is imported before a verb runs, so that --help answers at once."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Callable, Mapping
from inspect import signature
from pathlib import Path
from typing import Annotated

import typer

DONE, FAILED, BAD_INPUT, QUARANTINED = 0, 1, 2, 3

app = typer.Typer(
    help="Distill a diffusion model that needs 50 steps into a student that needs 1 to 8.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
trajectories = typer.Typer(help="Look into a data set of trajectories.", no_args_is_help=True)
app.add_typer(trajectories, name="trajectories")
jobs = typer.Typer(help="Ask for jobs that were submitted from this machine, and end them.", no_args_is_help=True)
app.add_typer(jobs, name="jobs")
RecipeArgument = Annotated[str, typer.Argument(help="A YAML file, or the name of a recipe that comes with fewstep.")]
RunArgument = Annotated[str, typer.Argument(help="The output of a run: its directory.")]
Overrides = Annotated[list[str] | None, typer.Argument(help="Fields to change, like method.student_steps=2.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout, all else on stderr.")]
DataSet = Annotated[str, typer.Argument(help="The place of a data set, named by its plan's hash.")]
JobId = Annotated[str, typer.Argument(help="As `fewstep submit` and `fewstep jobs list` say it.")]
Price = Annotated[float, typer.Option(help="Of an hour of one GPU (or of one worker where it has none).")]


@app.command()
def run(recipe: RecipeArgument, overrides: Overrides = None, as_json: AsJson = False) -> None:
    """Do it all: generate, train, export, evaluate, report. The same command continues an interrupted run."""
    from orchestrator import verbs

    _answer(as_json, lambda: verbs.run(_load(recipe, overrides)))


@app.command()
def plan(
    recipe: RecipeArgument,
    overrides: Overrides = None,
    price: Price = 0.0,
    offline: Annotated[bool, typer.Option(help="From configurations alone: no weights, no network, no clock.")] = False,
    as_json: AsJson = False,
) -> None:
    """Say what would be generated, what is already there, what the rest costs and what a training worker holds."""
    from orchestrator import verbs

    _answer(as_json, lambda: verbs.plan(_load(recipe, overrides), price, offline=offline))


@app.command()
def generate(
    recipe: RecipeArgument,
    overrides: Overrides = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be done, as `plan`.")] = False,
    price: Price = 0.0,
    as_json: AsJson = False,
) -> None:
    """Sample the teacher's trajectories into Parquet."""
    from orchestrator import verbs

    def act() -> Mapping[str, object]:
        told = _load(recipe, overrides)
        return verbs.plan(told, price) if dry_run else verbs.generate(told)

    _answer(as_json, act)


@app.command()
def train(recipe: RecipeArgument, overrides: Overrides = None, as_json: AsJson = False) -> None:
    """Train the student's rounds from the generated trajectories."""
    from orchestrator import verbs

    _answer(as_json, lambda: verbs.train(_load(recipe, overrides)))


@app.command()
def export(
    recipe: RecipeArgument,
    overrides: Overrides = None,
    push_to_hub: Annotated[str, typer.Option(metavar="ID", help="Upload it too; the token is HF_TOKEN's.")] = "",
    private: Annotated[bool, typer.Option("--private", help="Let nobody else see what is uploaded.")] = False,
    as_json: AsJson = False,
) -> None:
    """Save the trained student as an ordinary diffusers pipeline; a LoRA's adapters alone with export.merged=false."""
    from orchestrator import verbs

    _answer(as_json, lambda: verbs.export(_load(recipe, overrides), push_to_hub, private=private))


@app.command()
def evaluate(recipe: RecipeArgument, overrides: Overrides = None, as_json: AsJson = False) -> None:
    """Measure the exported student against its teacher, and write the report."""
    from orchestrator import verbs

    _answer(as_json, lambda: verbs.evaluate(_load(recipe, overrides)))


@app.command()
def watch(
    run: RunArgument,
    once: Annotated[bool, typer.Option("--once", help="Say how it stands now, and end.")] = False,
    as_json: AsJson = False,
) -> None:
    """Show how a run stands, until it ends: stages, rates, losses, quality, how old the last checkpoint is."""
    from orchestrator.watch import watch

    _answer(as_json, lambda: watch(Path(run), once=once))


@app.command()
def report(run: RunArgument, as_json: AsJson = False) -> None:
    """Write report.html again, from what a run has so far."""
    from orchestrator import verbs

    _answer(as_json, lambda: verbs.report(run))


@app.command()
def teacher(
    recipe: RecipeArgument,
    overrides: Overrides = None,
    prompt: Annotated[str, typer.Option(help="A prompt with many right answers, sampled 16 times.")] = "",
    as_json: AsJson = False,
) -> None:
    """Measure the teacher alone: its reference, its best few-step baselines, and whether it is worth distilling."""
    from orchestrator import verbs

    _answer(as_json, lambda: verbs.teacher(_load(recipe, overrides), prompt))


@app.command()
def compare(
    recipes: Annotated[list[str], typer.Argument(help="Recipes, and fields to change in all, like training.steps=9.")],
    output: Annotated[str, typer.Option(help="Where the runs, their trajectories, the table and the picture go.")],
    seeds: Annotated[int, typer.Option(min=1, help="How often each recipe is trained, from its own seed on.")] = 1,
    as_json: AsJson = False,
) -> None:
    """Run several recipes on one teacher and put them into one table and one picture. The same command continues."""
    from orchestrator import compare

    _answer(as_json, lambda: compare.compare(compare.read(recipes), Path(output), seeds))


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
    from orchestrator import verbs
    from orchestrator.sample import Request

    asked = Request(prompts, steps, guidance_scale, seed, teacher)
    _answer(as_json, lambda: verbs.sample(student, asked, out))


@app.command(name="import")
def import_data(
    recipe: RecipeArgument,
    source: Annotated[str, typer.Argument(help="A WebDataset tar, a folder of them, or a folder of the same files.")],
    store: Annotated[str, typer.Argument(help="Where data sets are kept: a folder, or s3://bucket/folder.")],
    overrides: Overrides = None,
    as_json: AsJson = False,
) -> None:
    """Take pictures or pairs of noise and sample that were made elsewhere over into a data set to train on."""
    from orchestrator import verbs

    _answer(as_json, lambda: verbs.import_data(_load(recipe, overrides), source, store))


@app.command()
def search(recipe: RecipeArgument, overrides: Overrides = None, as_json: AsJson = False) -> None:
    """Try many values of a recipe's fields on the same data, and judge the best fairly. The same command continues."""
    from orchestrator import search

    _answer(as_json, lambda: search.search(_load(recipe, overrides)))


@app.command()
def verify(path: DataSet, as_json: AsJson = False) -> None:
    """Rehash every shard of a data set and name those that are broken."""
    from orchestrator import verbs

    _answer(as_json, lambda: verbs.verify(path))


@app.command()
def repair(path: DataSet, as_json: AsJson = False) -> None:
    """Generate the broken shards of a data set again, and nothing else."""
    from orchestrator import verbs

    _answer(as_json, lambda: verbs.repair(path))


@app.command()
def clean(
    path: DataSet,
    older_than: Annotated[str, typer.Option(help="Like 90s, 30m, 2h or 7d; at least twice a shard's deadline.")] = "2h",
    as_json: AsJson = False,
) -> None:
    """Remove what writers that lost or died left in a data set. Nothing that any version names."""
    from orchestrator import verbs

    _answer(as_json, lambda: verbs.clean(path, older_than))


@trajectories.command()
def show(
    path: DataSet,
    samples: Annotated[int, typer.Option(min=1, help="Paths to decode.")] = 8,
    out: Annotated[str, typer.Option(help="A PNG of them along the path.")] = "trajectories.png",
    as_json: AsJson = False,
) -> None:
    """Say what a data set is, how it was made and how big it is, and draw some of it."""
    from orchestrator import verbs

    _answer(as_json, lambda: verbs.show(path, samples, out))


@app.command()
def methods(as_json: AsJson = False) -> None:
    """List the methods: paper, networks, rounds, and what a search may vary."""
    from orchestrator import catalog

    _answer(as_json, catalog.show)


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
    from orchestrator import submit

    def act() -> Mapping[str, object]:
        _check_verb(verb)
        told = _load(recipe, overrides)
        facts = submit.submit(verb, told, recipe, cluster, id=id, dry_run=dry_run, follow=follow)
        if dry_run and not as_json:
            sys.stdout.write(f"{facts['shown']}\n")
        return facts

    _answer(as_json, act)


@jobs.command("list")
def list_jobs(as_json: AsJson = False) -> None:
    """List them, the newest first, as they were last seen."""
    from orchestrator import submit

    _answer(as_json, submit.listed)


@jobs.command()
def status(id: JobId, as_json: AsJson = False) -> None:
    """Ask the cluster what has become of a job, and say where its outputs are."""
    from orchestrator import submit

    _answer(as_json, lambda: submit.status(id))


@jobs.command()
def logs(
    id: JobId,
    follow: Annotated[bool, typer.Option("--follow", help="Go on until the job ends.")] = False,
    as_json: AsJson = False,
) -> None:
    """Print what a job printed."""
    from orchestrator import submit

    _answer(as_json, lambda: submit.logs(id, follow))


@jobs.command()
def stop(id: JobId, as_json: AsJson = False) -> None:
    """End a job. `fewstep submit` with the same recipe continues what it left."""
    from orchestrator import submit

    _answer(as_json, lambda: submit.stop(id))


def _check_verb(verb: str) -> None:
    """Only what needs a recipe and nothing else can be submitted."""
    from orchestrator.errors import BadInput, nearest

    calls = [command.callback for command in app.registered_commands if command.callback]
    needs = {
        call.__name__: [p.name for p in signature(call).parameters.values() if p.default is p.empty] for call in calls
    }
    verbs = [name for name, needed in needs.items() if needed == ["recipe"]]
    if verb not in verbs:
        raise BadInput(f"{verb!r} cannot be submitted{nearest(verb, verbs)}; one of {', '.join(verbs)} can")


def _load(name: str, overrides: list[str] | None):  # noqa: ANN202 - Recipe, which is not imported yet
    from orchestrator import recipe

    return recipe.load(name, overrides or [])


def _answer(as_json: bool, verb: Callable[[], Mapping[str, object]]) -> None:
    """Run a verb; print its facts where asked; end with the exit code that says how it went."""
    from orchestrator.errors import BadInput, Diverged

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


def main() -> None:
    """Entry point of the `fewstep` command."""
    # Libraries talk about themselves on stderr; what a person should know is said by fewstep.
    quiet = {"TRANSFORMERS_VERBOSITY": "error", "DIFFUSERS_VERBOSITY": "error"}
    if not shutil.which("nvidia-smi"):
        quiet["DS_ACCELERATOR"] = "cpu"  # or DeepSpeed says at every import that it found no GPU
    for name, value in quiet.items():
        os.environ.setdefault(name, value)
    app()


if __name__ == "__main__":
    main()
