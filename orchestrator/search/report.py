"""What a search found, for people and for machines: search.html, search.md, search.parquet and best.yaml."""

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
        told = self.recipe.evaluation
        return (
            f"Less is better. KID is to the teacher's {told.reference_steps}-step pictures, by "
            f"{told.selection_samples} samples of noise and prompts that choices are made by: it chose these trials, "
            "so it is no result."
        )


def write_results(found: SearchResults, folder: Path) -> None:
    """Write all but best.yaml; at any time."""
    table = pa.Table.from_pylist([_row(trial, found) for trial in found.trials])
    fresh = folder / ".search.parquet"
    pq.write_table(table, fresh)
    fresh.replace(folder / "search.parquet")
    write_whole(folder / "search.md", markdown(found))
    write_whole(folder / "search.html", page(found))


def write_best(found: SearchResults, folder: Path) -> Path:
    """The recipe of the best trial, to be run in full; its paths are relative to the folder."""
    changes = next(trial.changes for trial in found.trials if trial.number == found.best)
    best = relative_to(vary(found.recipe, changes), folder)
    told = best.model_dump(mode="json", exclude_defaults=True, exclude={"search"})
    told["output"] = f"{found.recipe.output.rstrip('/')}-best"
    file = folder / "best.yaml"
    words = f"# The best of {len(found.trials)} trials: number {found.best}."
    write_whole(file, f"{words} {found.verdict}".strip() + "\n" + yaml.safe_dump(told, sort_keys=False))
    return file


def markdown(found: SearchResults) -> str:
    """The table of trials, and what the best is worth."""
    heads, rows = _table(found)
    lines = [heads, ["---"] * len(heads), *rows]
    parts = [
        f"# {found.title}",
        *([found.verdict] if found.verdict else []),
        found.note,
        "\n".join(f"| {' | '.join(line)} |" for line in lines),
        *([f"No other trial beats these in every objective: {_numbers(found.front)}."] if _is_front(found) else []),
        *([_importance(found)] if found.importance else []),
    ]
    return "\n\n".join(parts) + "\n"


def page(found: SearchResults) -> str:
    """The report page's HTML."""
    recipe, finished, target = found.recipe, found.finished, target_of(found.recipe)
    lead = html.escape(found.verdict or f"{len(finished)} of {len(found.trials)} trials are finished.")
    parts = [f'<header><h1>{html.escape(found.title)}</h1><p class="lead">{lead}</p></header>']
    if len(finished) > 1:
        lines = parallel_coordinates(finished, found.space, target, [found.best])
        parts.append(section("What led where", f'<div class="wide">{lines}</div>', "A line for each finished trial."))
    charts = []
    if found.importance:
        charts.append(
            _figure(
                f"What matters for the best {target}, by PED-ANOVA of {len(finished)} trials",
                importance_bars(found.importance),
            )
        )
    if _is_front(found):
        charts.append(_figure("What cannot be had at once", front_chart(finished, objectives_of(recipe), found.front)))
    if charts:
        parts.append(section("What mattered", f'<div class="charts">{"".join(charts)}</div>', ""))
    if curves := [_curve(trial, found) for trial in found.trials if any(kid > 0 for _, kid in trial.curve)]:
        chart = line_chart(curves, "training step", "KID", log_x=False)
        note = "Evaluations while training; a line that ends early was stopped."
        parts.append(section("How they went", f"<figure>{chart}</figure>", note))
    parts.append(section("Every trial", _html_table(found), found.note))
    return document(found.title, parts)


def _table(found: SearchResults) -> tuple[list[str], list[list[str]]]:
    objectives, fields = objectives_of(found.recipe), list(found.space)
    heads = ["trial", *(field.partition(".")[2] for field in fields), *objectives, "device-hours", "how it ended"]
    rows = []
    for trial in found.trials:
        name = f"**{trial.number}**" if trial.number == found.best else str(trial.number)
        values = [_value(trial.changes[field]) if field in trial.changes else "" for field in fields]
        worth = [f"{trial.values[name]:.4f}" if name in trial.values else "" for name in objectives]
        ended = f"{trial.state}: {trial.why.splitlines()[-1]}" if trial.why else trial.state
        rows.append([name, *values, *worth, f"{trial.device_hours:.2f}", ended.replace("|", "/")])
    return heads, rows


def _html_table(found: SearchResults) -> str:
    heads, rows = _table(found)
    head = "".join(f"<th>{html.escape(name)}</th>" for name in heads)
    lines = []
    for trial, row in zip(found.trials, rows, strict=True):
        css = ' class="student"' if trial.number == found.best else ""
        lines.append(f"<tr{css}>" + "".join(f"<td>{html.escape(cell.strip('*'))}</td>" for cell in row) + "</tr>")
    return f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{"".join(lines)}</tbody></table></div>'


def _row(trial: TrialRecord, found: SearchResults) -> dict[str, object]:
    changes = {field: json.dumps(trial.changes.get(field)) for field in found.space}
    values = {name: trial.values.get(name) for name in objectives_of(found.recipe)}
    facts = {"trial": trial.number, "state": trial.state, "device_hours": trial.device_hours, "why": trial.why}
    return {
        **facts,
        **changes,
        **values,
        "is_best": trial.number == found.best,
        "on_front": trial.number in found.front,
    }


def _curve(trial: TrialRecord, found: SearchResults) -> Series:
    is_best = trial.number == found.best
    name = f"trial {trial.number}, the best" if is_best else f"_{trial.number}"  # of the others no legend speaks
    return Series(name, "student" if is_best else "null", trial.curve)


def _figure(caption: str, chart: str) -> str:
    return f"<figure><figcaption>{html.escape(caption)}</figcaption>{chart}</figure>"


def _importance(found: SearchResults) -> str:
    shares = sorted(found.importance.items(), key=lambda item: -item[1])
    words = ", ".join(f"{field.partition('.')[2]} {share:.2f}" for field, share in shares)
    count = len(found.finished)
    return f"What matters for the best {target_of(found.recipe)}, by PED-ANOVA of {count} trials, so a hint: {words}."


def _is_front(found: SearchResults) -> bool:
    return len(objectives_of(found.recipe)) > 1 and bool(found.front)


def _numbers(front: Sequence[int]) -> str:
    return ", ".join(str(number) for number in front)


def _value(value: object) -> str:
    return f"{value:.3g}" if isinstance(value, float) else json.dumps(value).strip('"')
