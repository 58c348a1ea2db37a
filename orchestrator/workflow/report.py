"""Writes the page of a run again, from its directory alone."""

from __future__ import annotations

from pathlib import Path

from fewstep.orchestrator.observability.console import say
from fewstep.orchestrator.recipe.section import Json
from fewstep.orchestrator.reports.facts import report_facts, results_of
from fewstep.orchestrator.reports.run_page import write_report
from fewstep.orchestrator.runs.run import reopen


def report(folder: str) -> Json:
    """The page, of what a run has so far."""
    opened = reopen(Path(folder))
    page = opened.folder / "report.html"
    write_report(report_facts(opened, results_of(opened)), page)
    say(f"report: {page}")
    return {"report": str(page)}
