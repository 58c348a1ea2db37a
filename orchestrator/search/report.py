"""Writes the results of a search, for people and machines: search.html, search.md, search.parquet and best.yaml."""

from __future__ import annotations

import html
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from fewstep.orchestrator.files import write_whole
from fewstep.orchestrator.observability.line_chart import Series, line_chart
from fewstep.orchestrator.recipe.parsing import relative_to, vary
from fewstep.orchestrator.recipe.recipe import Recipe
from fewstep.orchestrator.recipe.teacher import teacher_name
from fewstep.orchestrator.reports.html import document, section
from fewstep.orchestrator.search.charts import front_chart, importance_bars, parallel_coordinates
from fewstep.orchestrator.search.objectives import objectives_of, target_of
from fewstep.orchestrator.search.space import Space
from fewstep.orchestrator.search.study import TrialRecord


@dataclass(frozen=True)
class SearchResults:
    """All that a search has found so far."""

    recipe: Recipe  # as it was
    space: Space
    trials: Sequence[TrialRecord]  # that have begun
    front: Sequence[int]  # their numbers: no other beats them in every objective
    best: int  # number; -1 before any is finished
    importance: dict[str, float]  # of each field for the target
    verdict: str  # of the confirmation, in a sentence; "" before it

    @property
    def finished(self) -> list[TrialRecord]:
        """Trials with values."""
        return [trial for trial in self.trials if trial.values]

    @property
    def title(self) -> str:
        """What was searched."""
        return f"A search over {self.recipe.method.name} on {teacher_name(self.recipe.teacher)}"

    @property
    def note(self) -> str:
        """How to read the trials' numbers."""
        evaluation = self.recipe.evaluation
        return (
            f"Less is better. KID is to the teacher's {evaluation.reference_steps}-step pictures, by "
            f"{evaluation.selection_samples} samples of noise and prompts that choices are made by: it chose these "
            "trials, so it is no result."
        )


def write_results(results: SearchResults, folder: Path) -> None:
    """Write all but best.yaml; at any time."""
    table = pa.Table.from_pylist([_row(trial, results) for trial in results.trials])
    fresh = folder / ".search.parquet"
    pq.write_table(table, fresh)
    fresh.replace(folder / "search.parquet")
    write_whole(folder / "search.md", markdown(results))
    write_whole(folder / "search.html", page(results))


def write_best(results: SearchResults, folder: Path) -> Path:
    """The recipe of the best trial, to be run in full; its paths are relative to the folder."""
    changes = next(trial.changes for trial in results.trials if trial.number == results.best)
    best = relative_to(vary(results.recipe, changes), folder)
    data = best.model_dump(mode="json", exclude_defaults=True, exclude={"search"})
    data["output"] = f"{results.recipe.output.rstrip('/')}-best"
    file = folder / "best.yaml"
    words = f"# The best of {len(results.trials)} trials: number {results.best}."
    write_whole(file, f"{words} {results.verdict}".strip() + "\n" + yaml.safe_dump(data, sort_keys=False))
    return file


def markdown(results: SearchResults) -> str:
    """The table of trials, and what the best is worth."""
    heads, rows = _table(results)
    lines = [heads, ["---"] * len(heads), *rows]
    parts = [
        f"# {results.title}",
        *([results.verdict] if results.verdict else []),
        results.note,
        "\n".join(f"| {' | '.join(line)} |" for line in lines),
        *([f"No other trial beats these in every objective: {_numbers(results.front)}."] if _is_front(results) else []),
        *([_importance(results)] if results.importance else []),
    ]
    return "\n\n".join(parts) + "\n"


def page(results: SearchResults) -> str:
    """The report page's HTML."""
    recipe, finished, target = results.recipe, results.finished, target_of(results.recipe)
    lead = html.escape(results.verdict or f"{len(finished)} of {len(results.trials)} trials are finished.")
    parts = [f'<header><h1>{html.escape(results.title)}</h1><p class="lead">{lead}</p></header>']
    if len(finished) > 1:
        lines = parallel_coordinates(finished, results.space, target, [results.best])
        parts.append(section("What led where", f'<div class="wide">{lines}</div>', "A line for each finished trial."))
    charts = []
    if results.importance:
        charts.append(
            _figure(
                f"What matters for the best {target}, by PED-ANOVA of {len(finished)} trials",
                importance_bars(results.importance),
            )
        )
    if _is_front(results):
        chart = front_chart(finished, objectives_of(recipe), results.front)
        charts.append(_figure("What cannot be had at once", chart))
    if charts:
        parts.append(section("What mattered", f'<div class="charts">{"".join(charts)}</div>', ""))
    if curves := [_curve(trial, results) for trial in results.trials if any(kid > 0 for _, kid in trial.curve)]:
        chart = line_chart(curves, "training step", "KID", log_x=False)
        note = "Evaluations while training; a line that ends early was stopped."
        parts.append(section("How they went", f"<figure>{chart}</figure>", note))
    parts.append(section("Every trial", _html_table(results), results.note))
    return document(results.title, parts)


def _table(results: SearchResults) -> tuple[list[str], list[list[str]]]:
    objectives, fields = objectives_of(results.recipe), list(results.space)
    heads = ["trial", *(field.partition(".")[2] for field in fields), *objectives, "device-hours", "how it ended"]
    rows = []
    for trial in results.trials:
        name = f"**{trial.number}**" if trial.number == results.best else str(trial.number)
        values = [_value(trial.changes[field]) if field in trial.changes else "" for field in fields]
        worth = [f"{trial.values[name]:.4f}" if name in trial.values else "" for name in objectives]
        ended = f"{trial.state}: {trial.why.splitlines()[-1]}" if trial.why else trial.state
        rows.append([name, *values, *worth, f"{trial.device_hours:.2f}", ended.replace("|", "/")])
    return heads, rows


def _html_table(results: SearchResults) -> str:
    heads, rows = _table(results)
    head = "".join(f"<th>{html.escape(name)}</th>" for name in heads)
    lines = []
    for trial, row in zip(results.trials, rows, strict=True):
        css = ' class="student"' if trial.number == results.best else ""
        lines.append(f"<tr{css}>" + "".join(f"<td>{html.escape(cell.strip('*'))}</td>" for cell in row) + "</tr>")
    return f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{"".join(lines)}</tbody></table></div>'


def _row(trial: TrialRecord, results: SearchResults) -> dict[str, object]:
    changes = {field: json.dumps(trial.changes.get(field)) for field in results.space}
    values = {name: trial.values.get(name) for name in objectives_of(results.recipe)}
    facts = {"trial": trial.number, "state": trial.state, "device_hours": trial.device_hours, "why": trial.why}
    return {
        **facts,
        **changes,
        **values,
        "is_best": trial.number == results.best,
        "on_front": trial.number in results.front,
    }


def _curve(trial: TrialRecord, results: SearchResults) -> Series:
    is_best = trial.number == results.best
    name = f"trial {trial.number}, the best" if is_best else f"_{trial.number}"  # of the others no legend speaks
    return Series(name, "student" if is_best else "null", trial.curve)


def _figure(caption: str, chart: str) -> str:
    return f"<figure><figcaption>{html.escape(caption)}</figcaption>{chart}</figure>"


def _importance(results: SearchResults) -> str:
    shares = sorted(results.importance.items(), key=lambda item: -item[1])
    words = ", ".join(f"{field.partition('.')[2]} {share:.2f}" for field, share in shares)
    count = len(results.finished)
    return f"What matters for the best {target_of(results.recipe)}, by PED-ANOVA of {count} trials, so a hint: {words}."


def _is_front(results: SearchResults) -> bool:
    return len(objectives_of(results.recipe)) > 1 and bool(results.front)


def _numbers(front: Sequence[int]) -> str:
    return ", ".join(str(number) for number in front)


def _value(value: object) -> str:
    return f"{value:.3g}" if isinstance(value, float) else json.dumps(value).strip('"')
