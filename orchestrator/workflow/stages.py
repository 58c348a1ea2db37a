"""Does the stages of one run, in order or each alone. Each command returns its facts as plain data, for --json."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path

from fewstep.orchestrator.compute.cluster import connect, require, worker_bundle
from fewstep.orchestrator.datasets.dataset import Dataset
from fewstep.orchestrator.datasets.sources import DatasetKind, check_sources
from fewstep.orchestrator.errors import BadInput
from fewstep.orchestrator.evaluation.baselines import present_teacher
from fewstep.orchestrator.evaluation.comparison import evaluate as evaluate_student
from fewstep.orchestrator.evaluation.reference_statistics import check_evaluation
from fewstep.orchestrator.evaluation.results import UNJUDGED, EvaluationResults
from fewstep.orchestrator.generation.factory import Generated
from fewstep.orchestrator.observability import metrics
from fewstep.orchestrator.observability.console import say
from fewstep.orchestrator.observability.trackers import check_trackers
from fewstep.orchestrator.recipe.parsing import check_training
from fewstep.orchestrator.recipe.recipe import Recipe
from fewstep.orchestrator.recipe.section import Json
from fewstep.orchestrator.reports.facts import card_facts, report_facts, results_of, teacher_facts
from fewstep.orchestrator.reports.hub import check_push, push
from fewstep.orchestrator.reports.model_card import card, write_card
from fewstep.orchestrator.reports.run_page import write_report
from fewstep.orchestrator.runs.run import RESULT, Run, round_folder
from fewstep.orchestrator.students.export import export_student
from fewstep.orchestrator.teachers.folders import holds_pipeline
from fewstep.orchestrator.training.driver import train_rounds
from fewstep.orchestrator.workflow.datasets import report_quarantined
from fewstep.orchestrator.workflow.round_data import make_round_data

NOT_JUDGED = "the teacher's samples are no pictures, so that nothing is judged"


def run(recipe: Recipe) -> Json:
    """Everything, in order; what is done is not done again."""
    check_training(recipe)
    opened = Run(recipe)
    with opened.driven():
        _require(recipe)
        datasets = make_round_data(opened, 0)
        if any(dataset.quarantined for dataset in datasets.values()):
            say("some shards were set aside; the student is trained on the others")
        _train(opened, datasets)
        facts = _export(opened)
        if _has_pictures(opened):
            facts = _evaluate(opened)
        else:
            say(NOT_JUDGED)
            _report(opened, UNJUDGED)
    folder = Path(recipe.output).resolve()
    say(f"\ndone: [bold]{folder / 'report.html'}[/bold] shows the result, {folder / 'student'} is the student")
    return {**facts, "quarantined": report_quarantined(datasets.values())}


def train(recipe: Recipe) -> Json:
    """The student, from trajectories that are there or are made first."""
    check_training(recipe)
    opened = Run(recipe)
    with opened.driven():
        _require(recipe)
        datasets = make_round_data(opened, 0)
        _train(opened, datasets)
    return {
        "rounds": [str(_result(opened))],
        "content_hash": {dataset_kind: dataset.content_hash for dataset_kind, dataset in datasets.items()},
    }


def export(recipe: Recipe, hub_id: str = "", *, private: bool = False) -> Json:
    """The student as a diffusers pipeline; pushed to a model hub where an id is given."""
    check_training(recipe)
    if hub_id:
        check_push(hub_id)
    opened = Run(recipe)
    with opened.driven():
        facts = _export(opened)
        return {**facts, "hub": _push(opened, hub_id, private=private)} if hub_id else facts


def evaluate(recipe: Recipe) -> Json:
    """The student against its teacher, and the report."""
    check_training(recipe)
    opened = Run(recipe)
    with opened.driven():
        _export(opened)
        if not _has_pictures(opened):
            raise BadInput(f"teacher.factory: {NOT_JUDGED}; give its OwnModel a `decode`")
        return _evaluate(opened)


def teacher(recipe: Recipe, prompt: str) -> Json:
    """The teacher alone: what an evaluation can start from, and whether there is something to distill."""
    out = Path(recipe.evaluation.baselines or Path(recipe.output).resolve() / "teacher")
    return present_teacher(recipe, Path(recipe.output).resolve() / "teacher-work", out, prompt)


def _require(recipe: Recipe) -> None:
    """The cluster can hold every stage, or it is said now."""
    check_sources(recipe)
    check_evaluation(recipe.evaluation)
    check_trackers(recipe)
    connect(recipe.resources)
    resources = recipe.resources
    for field, count in (("generators", resources.first_generators), ("workers", resources.first_workers)):
        require(resources, [worker_bundle(resources)] * count, f"resources.{field}")


def _train(opened: Run, first: Mapping[DatasetKind, Generated]) -> None:
    def data_of(number: int) -> dict[DatasetKind, Dataset]:
        generated = make_round_data(opened, number) if number else first
        datasets: dict[DatasetKind, Dataset] = {
            dataset_kind: Dataset.open(one.url, one.version) for dataset_kind, one in generated.items()
        }
        for dataset in datasets.values():
            dataset.check()
        return datasets

    train_rounds(opened.recipe, opened, data_of)


def _export(opened: Run) -> Json:
    """Write `student/`, unless it is there already as the recipe says."""
    recipe, out = opened.recipe, opened.folder / "student"
    result = _result(opened)
    if not result.exists():
        raise BadInput(f"output: {opened.folder} holds no trained student yet; `fewstep train` makes one")
    if not out.exists() or holds_pipeline(out) != recipe.export.merged:
        with opened.stage("export"):
            export_student(recipe, result, out)
        write_card(card_facts(opened, results_of(opened)), out, opened.folder / "evaluation")
    say(f"student: {out}")
    return {"student": str(out)}


def _push(opened: Run, hub_id: str, *, private: bool) -> str:
    """Push to a model hub, with a card that says what was measured so far; its address."""
    student = opened.folder / "student"
    facts = card_facts(opened, results_of(opened))
    return push(student, card(facts, student, hub_id), hub_id, facts.terms.gate, private=private)


def _has_pictures(opened: Run) -> bool:
    return bool(teacher_facts(opened).get("has_pictures", True))


def _evaluate(opened: Run) -> Json:
    recipe, out = opened.recipe, opened.folder / "evaluation"
    with opened.stage("evaluate"):
        results = evaluate_student(recipe, opened.folder / "student", out)
    metrics.Recorder(out / "quality.jsonl", opened.folder.name, recipe.method.name).record(0, results.quality())
    _report(opened, results)
    say(results.headline(recipe.method.build().student_steps))
    return {"metrics": str(out / "metrics.json"), "claims": [dataclasses.asdict(claim) for claim in results.claims]}


def _report(opened: Run, results: EvaluationResults) -> None:
    """Write the student's card and the page."""
    write_card(card_facts(opened, results), opened.folder / "student", opened.folder / "evaluation")
    write_report(report_facts(opened, results), opened.folder / "report.html")


def _result(opened: Run) -> Path:
    """The folder of the last round's student."""
    rounds = opened.recipe.method.build().rounds()
    return round_folder(opened.folder, len(rounds), rounds[-1]) / RESULT
