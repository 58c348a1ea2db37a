"""What the commands do. Each returns its facts as plain data, for --json."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from pathlib import Path

from rich.table import Table

from orchestrator import metrics
from orchestrator.baselines import present_teacher
from orchestrator.card import UNJUDGED, card, write_card
from orchestrator.cluster import ask, bundle, connect, require
from orchestrator.console import console, say
from orchestrator.dataset import Dataset
from orchestrator.durations import seconds_of
from orchestrator.errors import BadInput
from orchestrator.evaluate import evaluate as evaluate_student
from orchestrator.export import export as write_student
from orchestrator.facts import card_facts, findings_of, report_facts, teacher_facts
from orchestrator.families import holds_pipeline
from orchestrator.findings import Findings
from orchestrator.forecast import forecast, memory_facts, memory_of
from orchestrator.generate import SINGLE_WRITER, Generated, import_samples
from orchestrator.generate import repair as repair_data
from orchestrator.hub import check_push, push
from orchestrator.ledger import open_ledger
from orchestrator.protocol import check_evaluation
from orchestrator.recipe import Json, Recipe, Resources
from orchestrator.report import write_report
from orchestrator.results import RESULT
from orchestrator.run import Run, reopen
from orchestrator.sample import Request
from orchestrator.sample import sample as sample_pair
from orchestrator.show import describe_dataset, draw_dataset
from orchestrator.skeleton import has_configuration
from orchestrator.sources import Stock, check
from orchestrator.supply import plan_supply, supply
from orchestrator.trackers import check as check_trackers
from orchestrator.train import train_rounds

NOT_JUDGED = "the teacher's samples are no pictures, so that nothing is judged"


def run(recipe: Recipe) -> Json:
    """Everything, in order; what is done is not done again."""
    opened = Run(recipe)
    with opened.driven():
        _require(recipe)
        made = supply(opened, 0)
        if any(part.quarantined for part in made.values()):
            say("some shards were set aside; the student is trained on the others")
        _train(opened, made)
        facts = _export(opened)
        if _has_pictures(opened):
            facts = _evaluate(opened)
        else:
            say(NOT_JUDGED)
            _report(opened, UNJUDGED)
    folder = Path(recipe.output).resolve()
    say(f"\ndone: [bold]{folder / 'report.html'}[/bold] shows the result, {folder / 'student'} is the student")
    return {**facts, "quarantined": _quarantined(made.values())}


def plan(recipe: Recipe, price: float, *, offline: bool = False) -> Json:
    """What would be generated, what that takes and what training holds; `price` is of one device's hour.

    Offline it says what configurations alone tell: nothing is timed, and no weights are loaded.
    """
    check(recipe)
    check_evaluation(recipe.evaluation)
    warning = {"warning": SINGLE_WRITER} if recipe.trajectories.single_writer else {}
    if offline:
        facts = {**forecast(recipe), **warning}
    else:
        supplied = plan_supply(recipe, price)
        held = ask(memory_of, recipe.resources, recipe) if has_configuration(recipe.teacher) else None
        facts = {**supplied, **(memory_facts(held) if held else {}), **warning}
    print_facts(facts)
    return facts


def print_facts(facts: Json) -> None:
    """Names and values, one a line."""
    table = Table(show_header=False, box=None)
    for name, value in facts.items():
        table.add_row(name.replace("_", " "), f"{value:,}" if isinstance(value, int) else str(value))
    console.print(table)


def generate(recipe: Recipe) -> Json:
    """The trajectories alone."""
    check(recipe)
    opened = Run(recipe)
    with opened.driven():
        made = supply(opened, 0)
    parts = {
        stock: {
            "path": part.place,
            "manifest": part.version,
            "content_hash": part.content_hash,
            "shards": part.shards,
            "rows": part.rows,
        }
        for stock, part in made.items()
    }
    return {**parts, "quarantined": _quarantined(made.values())}


def train(recipe: Recipe) -> Json:
    """The student, from trajectories that are there or are made first."""
    opened = Run(recipe)
    with opened.driven():
        _require(recipe)
        made = supply(opened, 0)
        _train(opened, made)
    return {
        "rounds": [str(_result(recipe))],
        "content_hash": {stock: part.content_hash for stock, part in made.items()},
    }


def export(recipe: Recipe, hub_id: str = "", *, private: bool = False) -> Json:
    """The student as a diffusers pipeline; pushed to a model hub where an id is given."""
    if hub_id:
        check_push(hub_id)
    opened = Run(recipe)
    with opened.driven():
        facts = _export(opened)
        return {**facts, "hub": _push(opened, hub_id, private=private)} if hub_id else facts


def evaluate(recipe: Recipe) -> Json:
    """The student against its teacher, and the report."""
    opened = Run(recipe)
    with opened.driven():
        _export(opened)
        if not _has_pictures(opened):
            raise BadInput(f"teacher.factory: {NOT_JUDGED}; give its OwnModel a `decode`")
        return _evaluate(opened)


def report(folder: str) -> Json:
    """The page, of what a run has so far."""
    opened = reopen(Path(folder))
    page = opened.folder / "report.html"
    write_report(report_facts(opened, findings_of(opened)), page)
    say(f"report: {page}")
    return {"report": str(page)}


def teacher(recipe: Recipe, prompt: str) -> Json:
    """The teacher alone: what an evaluation can start from, and whether there is something to distill."""
    out = Path(recipe.evaluation.baselines or Path(recipe.output).resolve() / "teacher")
    return present_teacher(recipe, Path(recipe.output).resolve() / "teacher-work", out, prompt)


def import_data(recipe: Recipe, source: str, store: str) -> Json:
    """Samples that were made elsewhere, as a data set of ours."""
    made = import_samples(recipe, source, store)
    say(f"imported: {made.rows} rows in {made.shards} shards; train on them with data.imported={made.place}")
    facts = {"path": made.place, "content_hash": made.content_hash, "shards": made.shards, "rows": made.rows}
    return {**facts, "quarantined": _quarantined([made])}


def verify(path: str) -> Json:
    """Every file of a data set against its hash."""
    found = open_ledger(path).verify()
    for record in found.broken:
        say(f"{record.shard} {record.why}; mend it with `fewstep repair {path}`")
    if not found.broken:
        say(f"{found.shards} shards, {found.rows} rows, all as committed; content {found.content_hash}")
    return dataclasses.asdict(found)


def repair(path: str) -> Json:
    """The broken shards again."""
    made = repair_data(path, Resources())
    say(f"version {made.version}: {made.shards} shards, {made.rows} rows; content {made.content_hash}")
    return {
        "manifest": made.version,
        "content_hash": made.content_hash,
        "quarantined": _quarantined([made]),
    }


def clean(path: str, older_than: str) -> Json:
    """What writers left behind."""
    removed = open_ledger(path).clean(seconds_of(older_than, "--older-than"))
    say(f"removed {removed.files} files, {removed.bytes:,} bytes, all older than {older_than}")
    return dataclasses.asdict(removed)


def show(path: str, samples: int, out: str) -> Json:
    """What a data set is, and a picture of it."""
    facts = describe_dataset(path)
    print_facts(facts)
    draw_dataset(path, samples, Path(out))
    say(f"picture: {out}")
    return {**facts, "picture": out}


def sample(student: str, asked: Request, out: str) -> Json:
    """A picture of a student beside its teacher."""
    facts = sample_pair(student, asked, Path(out))
    say(f"picture: {out}")
    return facts


def _require(recipe: Recipe) -> None:
    """The cluster can hold every stage, or it is said now."""
    check(recipe)
    check_evaluation(recipe.evaluation)
    check_trackers(recipe)
    connect(recipe.resources)
    told = recipe.resources
    for field, count in (("generators", told.first_generators), ("workers", told.first_workers)):
        require(told, [bundle(told)] * count, f"resources.{field}")


def _train(opened: Run, first: Mapping[Stock, Generated]) -> None:
    def data_of(number: int) -> dict[Stock, Dataset]:
        made = supply(opened, number) if number else first
        datasets: dict[Stock, Dataset] = {stock: Dataset.open(part.place, part.version) for stock, part in made.items()}
        for dataset in datasets.values():
            dataset.check()
        return datasets

    train_rounds(opened.recipe, opened, data_of)


def _export(opened: Run) -> Json:
    """Write `student/`, unless it is there already as the recipe says."""
    recipe, out = opened.recipe, opened.folder / "student"
    result = _result(recipe)
    if not result.exists():
        raise BadInput(f"output: {opened.folder} holds no trained student yet; `fewstep train` makes one")
    if not out.exists() or holds_pipeline(out) != recipe.export.merged:
        with opened.stage("export"):
            write_student(recipe, result, out)
        write_card(card_facts(opened, findings_of(opened)), out, opened.folder / "evaluation")
    say(f"student: {out}")
    return {"student": str(out)}


def _push(opened: Run, hub_id: str, *, private: bool) -> str:
    """To a model hub, with a card that says what was measured so far."""
    student = opened.folder / "student"
    facts = card_facts(opened, findings_of(opened))
    return push(student, card(facts, student, hub_id), hub_id, facts.terms.gate, private=private)


def _has_pictures(opened: Run) -> bool:
    return bool(teacher_facts(opened).get("has_pictures", True))


def _evaluate(opened: Run) -> Json:
    recipe, out = opened.recipe, opened.folder / "evaluation"
    with opened.stage("evaluate"):
        found = evaluate_student(recipe, opened.folder / "student", out)
    findings = Findings(found.rows, found.claims)
    metrics.Recorder(out / "quality.jsonl", opened.folder.name, recipe.method.name).record(0, findings.quality())
    _report(opened, findings)
    say(findings.headline(recipe.method.build().student_steps))
    return {"metrics": str(out / "metrics.json"), "claims": [dataclasses.asdict(claim) for claim in found.claims]}


def _report(opened: Run, findings: Findings) -> None:
    """Write the student's card and the page."""
    write_card(card_facts(opened, findings), opened.folder / "student", opened.folder / "evaluation")
    write_report(report_facts(opened, findings), opened.folder / "report.html")


def _result(recipe: Recipe) -> Path:
    """The folder of the last round's student."""
    rounds = recipe.method.build().rounds()
    return Run(recipe).round_folder(len(rounds), rounds[-1]) / RESULT


def _quarantined(made: Iterable[Generated]) -> list[Mapping[str, str]]:
    found = [shard for part in made for shard in part.quarantined]
    for shard in found:
        say(f"shard {shard.shard} was set aside: {shard.why}")
    return [dataclasses.asdict(shard) for shard in found]
