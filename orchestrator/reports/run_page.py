"""Writes report.html: one page that shows a run to whoever opens it, with nothing to load from elsewhere."""

from __future__ import annotations

import base64
import html
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml

from fewstep.orchestrator.evaluation.results import (
    DIVERSITY,
    FRECHET,
    LEAST_SHARE,
    LOOKS,
    LOOKS_MARGIN,
    LOOKS_SHARE,
    Claim,
    EvaluationResults,
    Row,
    caution,
    counted,
)
from fewstep.orchestrator.files import write_whole
from fewstep.orchestrator.observability.durations import words
from fewstep.orchestrator.observability.line_chart import Band, Series, line_chart
from fewstep.orchestrator.recipe.section import Json
from fewstep.orchestrator.reports.html import document, section

LOSS_POINTS = 200  # of a curve, each the mean of its stretch
INKS_OF_CURVES = ("student", "teacher", "third", "fourth")
Rows = Sequence[Mapping[str, float]]


@dataclass(frozen=True)
class ReportFacts:
    """All that a report tells."""

    run: str  # its name
    teacher: str  # its name
    method: str
    paper: str  # arXiv id
    student_steps: int  # what the student was made for
    results: EvaluationResults  # without rows before the student is judged, and then there is no picture
    grid: Path  # PNG
    extremes: Path  # PNG; evaluations of older versions left none
    training: Mapping[str, Rows]  # by round: those of metrics.jsonl, with "step", "loss/..." and "quality/..." keys
    stages_s: Mapping[str, float]  # what each stage of the run took
    snippet: str  # Python that samples the student, or nothing before there is one
    lineage: Mapping[str, str]  # what it was made from and with: revisions, hashes, versions
    places: Mapping[str, str]  # what lies where
    recipe: Json  # resolved


def write_report(facts: ReportFacts, out: Path) -> None:
    """Write the page."""
    write_whole(out, page(facts))


def page(facts: ReportFacts) -> str:
    """The page's HTML."""
    title = f"{facts.teacher} in {counted(facts.student_steps)}"
    recipe = yaml.safe_dump(dict(facts.recipe), sort_keys=False)
    sections = [
        _header(facts, title),
        *(_judged(facts) if facts.results.rows else []),
        section("Use the student", _code(facts.snippet), "Plain diffusers; nothing of fewstep is needed."),
        section("Training", _curves(facts.training, "loss/"), "Each point is the mean of its stretch of steps."),
        section("Quality while it was trained", _curves(facts.training, "quality/"), "On samples of its own."),
        section("Time", _timings(facts.stages_s), ""),
        section("Where things are", _list(facts.places), ""),
        section("Made from", _list(facts.lineage), ""),
        f"<details><summary>The whole recipe</summary>{_code(recipe)}</details>",
    ]
    return document(title, sections)


def _judged(facts: ReportFacts) -> list[str]:
    """What the evaluation shows."""
    return [
        section("The picture", _picture(facts.grid), "The same noise and the same prompts down each column."),
        section("Most and least typical", _picture(facts.extremes), EXTREMES_NOTE) if facts.extremes.exists() else "",
        section("Quality against steps", _quality(facts.results), _quality_note(facts.results)),
        section("Every system", _table(facts.results), _table_note(facts.results)),
        section("What is claimed", _claims(facts.results), _claims_note(facts.results)),
    ]


def _header(facts: ReportFacts, title: str) -> str:
    paper = f'<a href="https://arxiv.org/abs/{facts.paper}">arXiv:{facts.paper}</a>'
    lead = facts.results.headline(facts.student_steps) if facts.results.rows else "Not judged yet."
    return (
        f'<header><p class="eyebrow">{html.escape(facts.run)} &middot; {html.escape(facts.method)} &middot; {paper}</p>'
        f'<h1>{html.escape(title)}</h1><p class="lead">{html.escape(lead)}</p>'
        f"{_tiles(facts) if facts.results.rows else ''}</header>"
    )


def _tiles(facts: ReportFacts) -> str:
    results = facts.results
    steps = results.judged_steps(facts.student_steps)
    student, teacher = (results.find(system, steps, "KID") for system in ("student", "teacher"))
    many = results.find("teacher", results.many_steps, "KID")
    faster = many.seconds_per_image / student.seconds_per_image
    tiles = [
        ("student", _number(student.value), f"{results.kid} at {counted(steps)}", _range(student)),
        ("teacher", _number(teacher.value), f"the teacher's best at {counted(steps)}", _range(teacher)),
        ("null", _number(many.value), f"the teacher at {results.many_steps}, other noise", _range(many)),
        (
            "",
            f"{faster:.1f}x",
            f"as fast as the teacher at {results.many_steps}",
            f"{student.seconds_per_image:.3g} s per image",
        ),
    ]
    boxes = "".join(
        f'<div class="tile {css}"><b>{value}</b><span>{html.escape(name)}</span>'
        f"<small>{html.escape(more)}</small></div>"
        for css, value, name, more in tiles
    )
    return f'<div class="tiles">{boxes}</div>'


def _picture(file: Path) -> str:
    data = base64.b64encode(file.read_bytes()).decode()
    return f'<div class="wide paper"><img alt="Systems across the rows" src="data:image/png;base64,{data}"></div>'


def _quality(results: EvaluationResults) -> str:
    charts = "".join(_quality_chart(results, reference) for reference in results.references)
    return f'<div class="charts">{charts}</div>'


def _quality_chart(results: EvaluationResults, reference: str) -> str:
    def line(system: str, name: str) -> Series:
        rows = [results.find(system, steps, "KID", reference) for steps in results.steps]
        points = [(row.steps, row.value) for row in rows]
        return Series(name, system, points, [(row.low, row.high) for row in rows])

    many = results.find("teacher", results.many_steps, "KID", reference)
    series = [line("student", "student"), line("teacher", "teacher at its best")]
    bands = [Band(f"teacher at {results.many_steps} steps", "null", many.low, many.high)]
    chart = line_chart(series, "sampling steps", results.kid, bands=bands, log_x=True)
    title = {"teacher": f"To the teacher's {results.many_steps}-step pictures", "images": "To real images"}[reference]
    return f"<figure><figcaption>{title}</figcaption>{chart}</figure>"


def _quality_note(results: EvaluationResults) -> str:
    return (
        f"{results.kid}, lower is nearer, on a logarithmic scale. The band is the teacher at {results.many_steps} "
        "steps on other noise: no system can do better than not to be told from it."
    )


EXTREMES_NOTE = (
    "By their distance to the third nearest of the teacher's pictures: what is judged good, and what is worst in it."
)
METRICS = ("check KID", "same-noise distance", *DIVERSITY, "CLIP score", *LOOKS)
OF_REFERENCES = {"teacher": "to the teacher", "images": "to images", "statistics": "to statistics"}


def _table(results: EvaluationResults) -> str:
    names = {"teacher": f"KID to teacher at {results.many_steps}", "images": "KID to images"}
    head = ["System", "Steps", *(names[reference] for reference in results.references)]
    metrics = [metric for metric in METRICS if results.measured(metric)]
    distances = [(name, ref) for name in FRECHET for ref in OF_REFERENCES if results.measured(name, ref)]
    head += [f"{name} {OF_REFERENCES[ref]}" for name, ref in distances]
    head += [metric[0].upper() + metric[1:] for metric in metrics] + ["s per image"]
    rows = []
    for row in _compared(results):
        sampling = f"{html.escape(row.sampler)}, guidance {row.guidance_scale:g}"
        cells = [f"{row.system}<small>{sampling}</small>", str(row.steps)]
        cells += [_measure(results.find(row.system, row.steps, "KID", ref)) for ref in results.references]
        cells += [_number(results.find(row.system, row.steps, *distance).value) for distance in distances]
        cells += [_measure_of(results, row, metric) for metric in metrics] + [f"{row.seconds_per_image:.3g}"]
        rows.append(f'<tr class="{row.system}">' + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>")
    heads = "".join(f"<th>{html.escape(name)}</th>" for name in head)
    return f'<div class="wide"><table><thead><tr>{heads}</tr></thead><tbody>{"".join(rows)}</tbody></table></div>'


def _measure_of(results: EvaluationResults, row: Row, metric: str) -> str:
    is_null = row.system == "teacher" and row.steps == results.many_steps
    if is_null and metric == "same-noise distance":
        return "0"
    return _measure(results.find(row.system, row.steps, metric))


def _measure(row: Row) -> str:
    return f"{_number(row.value)}<small>{_range(row)}</small>"


def _table_note(results: EvaluationResults) -> str:
    return (
        f"{_sample_counts(results)} Under each number its 95 % interval, by a bootstrap over prompts that draws the "
        "same prompts for every system. The teacher's sampler and guidance, and the student's guidance where it is an "
        "input, are the best found on other noise. Same-noise distance is between the features of a sample and of the "
        f"teacher's at {results.many_steps} steps from equal noise; variety is between those of samples of one prompt. "
        "Clipped is the share of values that leave the range of a screen. A student is not called better with less "
        f"than {LEAST_SHARE:g} of the precision, recall or variety that the teacher has at {results.many_steps} steps, "
        f"or with looks further from the teacher's than {LOOKS_SHARE:.0%} of them and {LOOKS_MARGIN:g}."
    )


def _sample_counts(results: EvaluationResults) -> str:
    """How many samples the numbers are of, in a sentence."""
    by_steps = {row.steps: row.samples for row in _compared(results)}
    most, fewest = max(by_steps.values()), min(by_steps.values())
    if most == fewest:
        return f"{most:,} samples of each system."
    others = ", ".join(str(steps) for steps, samples in by_steps.items() if samples == fewest)
    return f"{most:,} samples of each system, {fewest:,} at {others} steps."


def _compared(results: EvaluationResults) -> list[Row]:
    """A row for each system that was compared with the teacher's pictures, the fewest steps first."""
    rows = [row for row in results.rows if row.metric == results.kid and row.reference == "teacher"]
    return sorted(rows, key=lambda row: (row.steps, row.system))


def _claims(results: EvaluationResults) -> str:
    """What holds; what was not shown is folded away."""
    shown, others = ([claim for claim in results.claims if claim.holds is holds] for holds in (True, False))
    parts = [_claims_table(shown)] if shown else []
    if others:
        parts.append(f"<details><summary>Not shown: {len(others)}</summary>{_claims_table(others)}</details>")
    return "".join(parts)


def _claims_table(claims: Sequence[Claim]) -> str:
    rows = []
    for claim in claims:
        verdict = ("yes", "holds") if claim.holds else ("no", "withheld" if claim.withheld else "not shown")
        words = f"{claim.value:+.4f}<small>[{claim.low:+.4f}, {claim.high:+.4f}]</small>"
        mark = f'<span class="verdict {verdict[0]}">{verdict[1]}</span>'
        text = f"{html.escape(claim.claim)}<small>{html.escape(claim.withheld)}</small>"
        rows.append(f"<tr><td>{text}</td><td>{words}</td><td>{mark}</td></tr>")
    head = "<tr><th>Claim</th><th>Paired difference</th><th></th></tr>"
    return f'<div class="wide"><table class="claims"><thead>{head}</thead><tbody>{"".join(rows)}</tbody></table></div>'


def _claims_note(results: EvaluationResults) -> str:
    first = results.claims[0]
    note = "A claim holds where the whole 95 % interval of its paired difference is on the right side."
    return note if first.is_claim else f"{note} {caution(first.samples)}"


def _curves(rounds: Mapping[str, Rows], family: str) -> str:
    """A chart for each round, of the numbers whose names begin so; nothing where there are none."""
    charts = []
    for name, rows in rounds.items():
        keys = list(dict.fromkeys(key for row in rows for key in row if key.startswith(family)))
        points = {key: curve for key in keys if (curve := _smoothed(rows, key))}
        series = [
            Series(key.removeprefix(family), INKS_OF_CURVES[number % len(INKS_OF_CURVES)], curve)
            for number, (key, curve) in enumerate(points.items())
        ]
        if any(value > 0 for curve in points.values() for _, value in curve):
            chart = line_chart(series, "step", family.rstrip("/"), log_x=False)
            charts.append(f"<figure><figcaption>{html.escape(name)}</figcaption>{chart}</figure>")
    return f'<div class="charts">{"".join(charts)}</div>' if charts else ""


def _smoothed(rows: Rows, key: str) -> list[tuple[float, float]]:
    points = [(row["step"], row[key]) for row in rows if math.isfinite(row.get(key, math.nan))]
    size = max(1, len(points) // LOSS_POINTS)
    stretches = [points[start : start + size] for start in range(0, len(points), size)]
    return [(stretch[-1][0], sum(loss for _, loss in stretch) / len(stretch)) for stretch in stretches]


def _timings(stages: Mapping[str, float]) -> str:
    if not stages:
        return ""
    longest = max(stages.values())
    bars = "".join(
        f"<dt>{html.escape(name)}</dt>"
        f'<dd><i style="width:{100 * seconds / longest:.1f}%"></i><span>{words(seconds)}</span></dd>'
        for name, seconds in stages.items()
    )
    return f'<dl class="bars">{bars}<dt>all</dt><dd><span>{words(sum(stages.values()))}</span></dd></dl>'


def _list(facts: Mapping[str, str]) -> str:
    items = "".join(
        f"<dt>{html.escape(name)}</dt><dd><code>{html.escape(value)}</code></dd>" for name, value in facts.items()
    )
    return f'<dl class="facts">{items}</dl>' if items else ""


def _code(text: str) -> str:
    return f"<pre><code>{html.escape(text)}</code></pre>" if text else ""


def _range(row: Row) -> str:
    return f"[{_number(row.low)}, {_number(row.high)}]"


def _number(value: float) -> str:
    places = 4 if abs(value) < 1 else 2
    return f"{round(value, places) + 0.0:.{places}f}"  # adding 0 turns -0 into 0
