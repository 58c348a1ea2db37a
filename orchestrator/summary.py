"""What a finished run leaves for people: the student's model card, and the report."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import cast

from orchestrator import metrics
from orchestrator.bench import judged_prompts
from orchestrator.card import snippet, teacher_name, write_card
from orchestrator.evaluate import Evaluated
from orchestrator.findings import Findings
from orchestrator.ledger import open_ledger
from orchestrator.recipe import Recipe
from orchestrator.report import ReportFacts, write_report
from orchestrator.run import Run


def summarise(run: Run, evaluated: Evaluated) -> Path:
    """Write the card into `student/` and report.html beside it, and return the report's path."""
    recipe, folder = run.recipe, run.folder
    findings = Findings(evaluated.rows, evaluated.claims)
    lineage, prompt = lineage_of(run), judged_prompts(recipe.evaluation)[0]
    write_card(recipe, folder / "student", findings, folder / "evaluation", prompt, lineage)
    method = recipe.method.build()
    facts = ReportFacts(
        run=folder.name,
        teacher=teacher_name(recipe.teacher),
        method=recipe.method.name,
        paper=method.paper,
        student_steps=method.student_steps,
        findings=findings,
        grid=folder / "evaluation" / "grid.png",
        losses=losses_of(run),
        stages_s=cast(Mapping[str, float], run.facts["stages"]),
        snippet=snippet(recipe, str(folder / "student"), prompt),
        lineage=lineage,
        places=places_of(run),
        recipe=recipe.resolved(),
    )
    write_report(facts, folder / "report.html")
    return folder / "report.html"


def lineage_of(run: Run) -> dict[str, str]:
    """What the student was made from and with."""
    manifest = cast(Mapping[str, object], run.facts["manifest"])
    plan = open_ledger(str(manifest["path"])).plan
    lineage = {
        "teacher": place_of(run.recipe),
        "teacher revision": str(plan.teacher["revision"]),
        "trajectories": f"{manifest['content_hash']} (version {manifest['version']})",
    }
    return lineage | cast(dict[str, str], run.facts["versions"])


def place_of(recipe: Recipe) -> str:
    """Where the teacher is."""
    return recipe.teacher.folder or recipe.teacher.hub


def losses_of(run: Run) -> dict[str, list[dict[str, float]]]:
    """The metrics of each round, in order."""
    rounds = run.recipe.method.build().rounds()
    folders = [run.round_folder(number, round) for number, round in enumerate(rounds, 1)]
    return {folder.name: metrics.read(folder / "metrics.jsonl") for folder in folders}


def places_of(run: Run) -> dict[str, str]:
    """Where a person finds what."""
    manifest = cast(Mapping[str, object], run.facts["manifest"])
    return {
        "the student": str(run.folder / "student"),
        "numbers": str(run.folder / "evaluation" / "metrics.json"),
        "claims": str(run.folder / "evaluation" / "claims.json"),
        "the picture": str(run.folder / "evaluation" / "grid.png"),
        "training": str(run.folder / "rounds"),
        "trajectories": str(manifest["path"]),
        "recipe": str(run.folder / "recipe.yaml"),
    }
