"""What the commands do. Each returns its facts as plain data, for --json."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import cast

from rich.table import Table

from orchestrator import metrics
from orchestrator.baselines import present_teacher
from orchestrator.calibrate import check_nodes, check_space, seconds_per_batch
from orchestrator.card import snippet, teacher_name, write_card
from orchestrator.cluster import bundle, connect, require
from orchestrator.console import console, say
from orchestrator.dataset import Dataset
from orchestrator.errors import BadInput
from orchestrator.evaluate import evaluate as evaluate_student
from orchestrator.export import export as write_student
from orchestrator.families import FAMILIES
from orchestrator.findings import Findings
from orchestrator.generate import SINGLE_WRITER, Generated, plan_of
from orchestrator.generate import generate as generate_data
from orchestrator.generate import repair as repair_data
from orchestrator.ledger import count_committed, open_ledger
from orchestrator.prompts import read_prompts
from orchestrator.recipe import Json, Recipe, Resources, TeacherSpec
from orchestrator.report import ReportFacts, write_report
from orchestrator.results import RESULT
from orchestrator.run import Run
from orchestrator.show import describe_dataset, draw_dataset
from orchestrator.train import check, train_rounds, trajectories_of


def run(recipe: Recipe) -> Json:
    """Everything, in order; what is done is not done again."""
    opened = Run(recipe)
    with opened.driven():
        _require(recipe)
        made = _generate(opened)
        if made.quarantined:
            say("some shards were set aside; the student is trained on the others")
        _train(opened, made)
        _export(opened)
        facts = _evaluate(opened)
    folder = Path(recipe.output).resolve()
    say(f"\ndone: [bold]{folder / 'report.html'}[/bold] shows the result, {folder / 'student'} is the student")
    return {**facts, "quarantined": _quarantined(made)}


def plan(recipe: Recipe, price: float) -> Json:
    """What would be generated, and what that takes; `price` is of one device's hour."""
    check(recipe)
    sampled, store = _sampled(recipe), store_of(recipe)
    planned = plan_of(sampled, store)
    committed = count_committed(store, planned)
    check_space(store, planned, committed)
    check_nodes(store, recipe.resources)
    seconds = seconds_per_batch(sampled, planned)
    hours = seconds * sum(len(planned.batches(shard)) for shard in planned.shards()[committed:]) / 3600
    facts = {
        "plan_hash": planned.hash,
        "rows": planned.samples,
        "bytes": planned.total_bytes,
        "shards": len(planned.shards()),
        "teacher_evaluations": planned.teacher_evaluations,
        "committed": committed,
        "batch_size": planned.batch_size,
        "seconds_per_batch": round(seconds, 3),
        "device_hours": round(hours, 4),
        "wall_hours": round(hours / recipe.resources.generators, 4),
        **({"cost": round(hours * price, 2)} if price else {}),
        **({"warning": SINGLE_WRITER} if recipe.trajectories.single_writer else {}),
    }
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
        made = _generate(opened)
    return {
        "path": made.place,
        "manifest": made.version,
        "content_hash": made.content_hash,
        "shards": made.shards,
        "rows": made.rows,
        "quarantined": _quarantined(made),
    }


def train(recipe: Recipe) -> Json:
    """The student, from trajectories that are there or are made first."""
    opened = Run(recipe)
    with opened.driven():
        _require(recipe)
        made = _generate(opened)
        _train(opened, made)
    return {"rounds": [str(_result(recipe))], "manifest": made.version, "content_hash": made.content_hash}


def export(recipe: Recipe) -> Json:
    """The student as a diffusers pipeline."""
    opened = Run(recipe)
    with opened.driven():
        return _export(opened)


def evaluate(recipe: Recipe) -> Json:
    """The student against its teacher, and the report."""
    opened = Run(recipe)
    with opened.driven():
        _export(opened)
        return _evaluate(opened)


def teacher(recipe: Recipe, prompt: str) -> Json:
    """The teacher alone: what an evaluation can start from, and whether there is something to distill."""
    out = Path(recipe.evaluation.baselines or Path(recipe.output).resolve() / "teacher")
    return present_teacher(recipe, Path(recipe.output).resolve() / "teacher-work", out, prompt)


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
    return {"manifest": made.version, "content_hash": made.content_hash, "quarantined": _quarantined(made)}


def clean(path: str, age_s: float) -> Json:
    """What writers left behind."""
    removed = open_ledger(path).clean(age_s)
    say(f"removed {removed.files} files, {removed.bytes:,} bytes, all older than {age_s:g} s")
    return dataclasses.asdict(removed)


def show(path: str, samples: int, out: str) -> Json:
    """What a data set is, and a picture of it."""
    facts = describe_dataset(path)
    print_facts(facts)
    draw_dataset(path, samples, Path(out))
    say(f"picture: {out}")
    return {**facts, "picture": out}


def store_of(recipe: Recipe) -> str:
    """Where the recipe's trajectories are."""
    return recipe.trajectories.store or str(Path(recipe.output).resolve() / "trajectories")


def _require(recipe: Recipe) -> None:
    """The cluster can hold every stage, or it is said now."""
    check(recipe)
    connect(recipe.resources)
    for field, count in (("generators", recipe.resources.first_generators), ("workers", recipe.resources.workers)):
        require(recipe.resources, [bundle(recipe.resources)] * count, f"resources.{field}")


def _sampled(recipe: Recipe, number: int = 0, teacher: TeacherSpec | None = None) -> Recipe:
    """The recipe as the sampling for a round reads it; rounds count from 0, and the first has the recipe's teacher."""
    told = trajectories_of(recipe, recipe.method.build().rounds()[number])
    if teacher is None or teacher == recipe.teacher:
        return recipe.model_copy(update={"trajectories": told})
    judged = recipe.evaluation.model_copy(update={"solvers": (told.solver,)})  # nobody judges a later round's teacher
    return recipe.model_copy(update={"teacher": teacher, "trajectories": told, "evaluation": judged})


def _generate(opened: Run, number: int = 0) -> Generated:
    """The data set that a round reads. A later round's is sampled from the student before it, exported for that."""
    recipe = opened.recipe
    rounds = recipe.method.build().rounds()
    round, teacher = rounds[number], recipe.teacher
    generates = any(source.kind in ("path", "pairs") for source in round.sources.values())
    if generates and round.teacher != "base":
        before = opened.round_folder(number, rounds[number - 1])
        teacher = teacher.model_copy(update={"folder": str(before / "pipeline"), "hub": "", "revision": ""})
        if not Path(teacher.folder).exists():
            write_student(recipe, before / RESULT, Path(teacher.folder))
    sampled = _sampled(recipe, number, teacher) if generates else _sampled(recipe)
    connect(recipe.resources)
    recorder = metrics.Recorder(opened.folder / "generate.jsonl", run=opened.folder.name)
    with opened.stage("generate"):
        made = generate_data(sampled, store_of(recipe), recorder.record)
    facts = {"path": made.place, "version": made.version, "content_hash": made.content_hash}
    opened.record("manifests", round.name, facts)
    say(f"trajectories: {made.rows} rows in {made.shards} shards at {made.place}")
    return made


def _train(opened: Run, first: Generated) -> None:
    def data_of(number: int) -> Dataset:
        made = _generate(opened, number) if number else first
        dataset = Dataset.open(made.place, made.version)
        dataset.check()
        return dataset

    train_rounds(opened.recipe, opened, data_of)


def _export(opened: Run) -> Json:
    """Write `student/`, unless it is there already."""
    recipe, out = opened.recipe, opened.folder / "student"
    result = _result(recipe)
    if not result.exists():
        raise BadInput(f"output: {opened.folder} holds no trained student yet; `fewstep train` makes one")
    if not out.exists():
        with opened.stage("export"):
            write_student(recipe, result, out)
    say(f"student: {out}")
    return {"student": str(out)}


def _evaluate(opened: Run) -> Json:
    recipe, out = opened.recipe, opened.folder / "evaluation"
    with opened.stage("evaluate"):
        found = evaluate_student(recipe, opened.folder / "student", out)
    _report(opened, Findings(found.rows, found.claims))
    return {"metrics": str(out / "metrics.json"), "claims": [dataclasses.asdict(claim) for claim in found.claims]}


def _report(opened: Run, findings: Findings) -> None:
    """Write the student's card and the page, and say what was found."""
    recipe, folder, facts = opened.recipe, opened.folder, opened.facts
    method = recipe.method.build()
    prompt = read_prompts(recipe.evaluation.prompts, "evaluation.prompts")[0]
    manifests, versions = (cast(Mapping[str, Json], facts[name]) for name in ("manifests", "versions"))
    manifest = manifests[method.rounds()[0].name]
    card = open_ledger(str(manifest["path"])).plan.teacher
    family = FAMILIES[str(card["pipeline"])]
    lineage = {
        "teacher revision": str(card["revision"]),
        "trajectories": f"{manifest['content_hash']} (version {manifest['version']})",
        **{name: str(version) for name, version in versions.items()},
    }
    student, evaluation = folder / "student", folder / "evaluation"
    write_card(recipe, family, student, findings, evaluation, prompt, lineage)
    rounds = {round.name: opened.round_folder(number, round) for number, round in enumerate(method.rounds(), 1)}
    places = {"student": student, "trajectories": manifest["path"], "metrics": evaluation / "metrics.json"}
    report = ReportFacts(
        run=folder.name,
        teacher=teacher_name(recipe.teacher),
        method=recipe.method.name,
        paper=method.paper,
        student_steps=method.student_steps,
        findings=findings,
        grid=evaluation / "grid.png",
        losses={name: metrics.read(place / "metrics.jsonl") for name, place in rounds.items()},
        stages_s=cast(Mapping[str, float], facts["stages"]),
        snippet=snippet(recipe, family, findings, str(student), prompt),
        lineage=lineage,
        places={name: str(place) for name, place in places.items()},
        recipe=recipe.resolved(),
    )
    write_report(report, folder / "report.html")
    say(findings.headline(method.student_steps))


def _result(recipe: Recipe) -> Path:
    """The folder of the last round's student."""
    rounds = recipe.method.build().rounds()
    return Run(recipe).round_folder(len(rounds), rounds[-1]) / RESULT


def _quarantined(made: Generated) -> list[Mapping[str, str]]:
    for shard in made.quarantined:
        say(f"shard {shard.shard} was set aside: {shard.why}")
    return [dataclasses.asdict(shard) for shard in made.quarantined]
