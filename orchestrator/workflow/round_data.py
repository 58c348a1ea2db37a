"""Makes the data sets that the rounds of a recipe read, where they are not there yet."""

from __future__ import annotations

from pathlib import Path

from fewstep.orchestrator.compute.cluster import connect
from fewstep.orchestrator.datasets.sources import DatasetKind, dataset_kinds, is_sampled, trajectories_of
from fewstep.orchestrator.generation.data_sets import encode_images, generate, imported
from fewstep.orchestrator.generation.factory import Generated, Report
from fewstep.orchestrator.observability import metrics
from fewstep.orchestrator.observability.console import say
from fewstep.orchestrator.recipe.recipe import Export, Recipe
from fewstep.orchestrator.recipe.teacher import TeacherSpec
from fewstep.orchestrator.runs.run import RESULT, Run
from fewstep.orchestrator.students.export import export_student


def make_round_data(opened: Run, number: int) -> dict[DatasetKind, Generated]:
    """The data sets that a round reads, made where they are not there yet; rounds count from 0."""
    recipe, datasets = opened.recipe, dict[DatasetKind, Generated]()
    round = recipe.method.build().rounds()[number]
    connect(recipe.resources)
    recorder = metrics.Recorder(opened.folder / "generate.jsonl", opened.folder.name, recipe.method.name)
    for dataset_kind in sorted(set(dataset_kinds(recipe, round).values()), reverse=True):
        with opened.stage("generate"):
            datasets[dataset_kind] = dataset = _make(opened, number, dataset_kind, recorder.record)
        facts = {"path": dataset.url, "version": dataset.version, "content_hash": dataset.content_hash}
        opened.record(
            "manifests",
            round.name if len(datasets) == 1 and dataset_kind != "imported" else f"{round.name} {dataset_kind}",
            facts,
        )
        say(f"{dataset_kind}: {dataset.rows} rows in {dataset.shards} shards at {dataset.url}")
    return datasets


def _make(opened: Run, number: int, dataset_kind: DatasetKind, report: Report) -> Generated:
    """One of the data sets that a round reads."""
    recipe, store = opened.recipe, store_of(opened.recipe)
    if dataset_kind == "imported":
        return imported(recipe)
    if dataset_kind == "images":
        return encode_images(recipe, store, report)
    return generate(sampling_recipe(recipe, number, _generator(opened, number)), store, report)


def samples_itself(recipe: Recipe, number: int) -> bool:
    """Whether a round learns from what the student of the round before samples; rounds count from 0."""
    round = recipe.method.build().rounds()[number]
    return round.teacher != "base" and is_sampled(round)


def store_of(recipe: Recipe) -> str:
    """Where the recipe's data sets are: an address, or an absolute path."""
    store = recipe.trajectories.store or f"{recipe.output}/trajectories"
    return store if "://" in store else str(Path(store).expanduser().resolve())


def sampling_recipe(recipe: Recipe, number: int, teacher: TeacherSpec) -> Recipe:
    """The recipe as the sampling for a round reads it."""
    trajectories = trajectories_of(recipe, recipe.method.build().rounds()[number])
    if teacher == recipe.teacher:
        return recipe.model_copy(update={"trajectories": trajectories})
    solvers = (trajectories.solver,)  # nobody judges a later round's teacher
    evaluation = recipe.evaluation.model_copy(update={"solvers": solvers})
    return recipe.model_copy(update={"teacher": teacher, "trajectories": trajectories, "evaluation": evaluation})


def _generator(opened: Run, number: int) -> TeacherSpec:
    """Who samples for a round: the recipe's teacher, or the student of the round before, exported for that."""
    recipe = opened.recipe
    rounds = recipe.method.build().rounds()
    if not samples_itself(recipe, number):
        return recipe.teacher
    before = opened.round_folder(number, rounds[number - 1])
    teacher = recipe.teacher.at(before / "pipeline")
    if not Path(teacher.folder).exists():
        export_student(recipe.model_copy(update={"export": Export()}), before / RESULT, Path(teacher.folder))
    return teacher
