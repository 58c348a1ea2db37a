"""Reads what a run directory knows so far, as its student's card and its report tell it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from pydantic import TypeAdapter

from fewstep.orchestrator.datasets.commit_log import open_commit_log
from fewstep.orchestrator.evaluation.results import UNJUDGED, EvaluationResults
from fewstep.orchestrator.families.usage import USAGES
from fewstep.orchestrator.inputs.prompts import read_prompts
from fewstep.orchestrator.observability import metrics
from fewstep.orchestrator.recipe.recipe import Recipe
from fewstep.orchestrator.recipe.section import Json
from fewstep.orchestrator.recipe.teacher import teacher_name
from fewstep.orchestrator.reports.licence import terms_of
from fewstep.orchestrator.reports.model_card import CardFacts, snippet
from fewstep.orchestrator.reports.run_page import ReportFacts
from fewstep.orchestrator.runs.run import Run


@dataclass(frozen=True)
class ManifestRecord:
    """A version of a data set, as run.json names it."""

    path: str
    version: int
    content_hash: str


def results_of(opened: Run) -> EvaluationResults:
    """What was found of its student, if it was judged."""
    evaluation = opened.folder / "evaluation"
    return EvaluationResults.read(evaluation) if (evaluation / "claims.json").exists() else UNJUDGED


def teacher_facts(opened: Run) -> Json:
    """What a run's data, which there is, knows of its teacher."""
    return open_commit_log(next(iter(manifests_of(opened).values())).path).plan.teacher


def manifests_of(opened: Run) -> Mapping[str, ManifestRecord]:
    """The data sets of a run's rounds, by name; none before the first is there."""
    return TypeAdapter(dict[str, ManifestRecord]).validate_python(opened.facts.get("manifests", {}))


def stages_of(opened: Run) -> Mapping[str, float]:
    """The seconds that each stage of a run took so far."""
    return TypeAdapter(dict[str, float]).validate_python(opened.facts["stages"])


def card_facts(opened: Run, results: EvaluationResults) -> CardFacts:
    """What a run knows of its student, which there is."""
    recipe, teacher = opened.recipe, teacher_facts(opened)
    lineage = {"teacher revision": str(teacher["revision"]), **_lineage(opened)}
    usage = USAGES[str(teacher["pipeline"])]
    return CardFacts(recipe, usage, results, _example(recipe), terms_of(recipe.teacher), lineage)


def report_facts(opened: Run, results: EvaluationResults) -> ReportFacts:
    """What a run knows of itself, at any time."""
    recipe, folder = opened.recipe, opened.folder
    method, student, evaluation = recipe.method.build(), folder / "student", folder / "evaluation"
    card = card_facts(opened, results) if student.exists() else None
    rounds = {round.name: opened.round_folder(number, round) for number, round in enumerate(method.rounds(), 1)}
    stores = {f"data of {name}": manifest.path for name, manifest in manifests_of(opened).items()}
    files = {"student": student, "metrics": evaluation / "metrics.json"}
    return ReportFacts(
        run=folder.name,
        teacher=teacher_name(recipe.teacher),
        method=recipe.method.name,
        paper=method.paper,
        student_steps=method.student_steps,
        results=results,
        grid=evaluation / "grid.png",
        extremes=evaluation / "extremes.png",
        training={name: metrics.read(round / "metrics.jsonl") for name, round in rounds.items()},
        stages_s=stages_of(opened),
        snippet=snippet(card, student, str(student)) if card else "",
        lineage=card.lineage if card else _lineage(opened),
        places=stores | {name: str(path) for name, path in files.items() if path.exists()},
        recipe=recipe.resolved(),
    )


def _example(recipe: Recipe) -> str:
    """A prompt, held out where there is one."""
    held_out, trajectories = recipe.evaluation.prompts, recipe.trajectories
    if held_out:
        return read_prompts(held_out, "evaluation.prompts")[0]
    return read_prompts(trajectories.prompts, column=trajectories.prompt_column)[0]


def _lineage(opened: Run) -> dict[str, str]:
    """Its data, and the versions of what made it."""
    data = {
        f"data of {name}": f"{manifest.content_hash} (version {manifest.version})"
        for name, manifest in manifests_of(opened).items()
    }
    return data | TypeAdapter(dict[str, str]).validate_python(opened.facts["versions"])
