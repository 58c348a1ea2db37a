"""What a run directory knows so far, as its student's card and its report tell it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import cast

from fewstep.orchestrator.datasets.commit_log import open_commit_log
from fewstep.orchestrator.evaluation.results import UNJUDGED, EvaluationResults
from fewstep.orchestrator.inputs.prompts import read_prompts
from fewstep.orchestrator.observability import metrics
from fewstep.orchestrator.recipe.recipe import Recipe
from fewstep.orchestrator.recipe.section import Json
from fewstep.orchestrator.recipe.teacher import teacher_name
from fewstep.orchestrator.reports.licence import terms_of
from fewstep.orchestrator.reports.model_card import CardFacts, snippet
from fewstep.orchestrator.reports.run_page import ReportFacts
from fewstep.orchestrator.runs.run import Run
from fewstep.orchestrator.teachers.load import FAMILIES


def results_of(opened: Run) -> EvaluationResults:
    """What was found of its student, if it was judged."""
    evaluation = opened.folder / "evaluation"
    return EvaluationResults.read(evaluation) if (evaluation / "claims.json").exists() else UNJUDGED


def teacher_facts(opened: Run) -> Json:
    """What a run's data, which there is, knows of its teacher."""
    return open_commit_log(str(next(iter(_manifests(opened).values()))["path"])).plan.teacher


def card_facts(opened: Run, results: EvaluationResults) -> CardFacts:
    """What a run knows of its student, which there is."""
    recipe, teacher = opened.recipe, teacher_facts(opened)
    lineage = {"teacher revision": str(teacher["revision"]), **_lineage(opened)}
    family = FAMILIES[str(teacher["pipeline"])]
    return CardFacts(recipe, family, results, _example(recipe), terms_of(recipe.teacher), lineage)


def report_facts(opened: Run, results: EvaluationResults) -> ReportFacts:
    """What a run knows of itself, at any time."""
    recipe, folder = opened.recipe, opened.folder
    method, student, evaluation = recipe.method.build(), folder / "student", folder / "evaluation"
    told = card_facts(opened, results) if student.exists() else None
    rounds = {round.name: opened.round_folder(number, round) for number, round in enumerate(method.rounds(), 1)}
    stores = {f"data of {name}": str(made["path"]) for name, made in _manifests(opened).items()}
    files = {"student": student, "metrics": evaluation / "metrics.json"}
    return ReportFacts(
        run=folder.name,
        teacher=teacher_name(recipe.teacher),
        method=recipe.method.name,
        paper=method.paper,
        student_steps=method.student_steps,
        results=results,
        grid=evaluation / "grid.png",
        training={name: metrics.read(place / "metrics.jsonl") for name, place in rounds.items()},
        stages_s=cast(Mapping[str, float], opened.facts["stages"]),
        snippet=snippet(told, student, str(student)) if told else "",
        lineage=told.lineage if told else _lineage(opened),
        places=stores | {name: str(place) for name, place in files.items() if place.exists()},
        recipe=recipe.resolved(),
    )


def _example(recipe: Recipe) -> str:
    """A prompt, held out where there is one."""
    judged, told = recipe.evaluation.prompts, recipe.trajectories
    if judged:
        return read_prompts(judged, "evaluation.prompts")[0]
    return read_prompts(told.prompts, column=told.prompt_column)[0]


def _manifests(opened: Run) -> Mapping[str, Json]:
    return cast(Mapping[str, Json], opened.facts.get("manifests", {}))


def _lineage(opened: Run) -> dict[str, str]:
    """Its data, and the versions of what made it."""
    data = {
        f"data of {name}": f"{made['content_hash']} (version {made['version']})"
        for name, made in _manifests(opened).items()
    }
    versions = cast(Mapping[str, Json], opened.facts["versions"])
    return data | {name: str(version) for name, version in versions.items()}
