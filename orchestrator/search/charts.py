"""Draws a search: which values led where, which fields mattered, what cannot be had at once."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from matplotlib import rc_context
from matplotlib.figure import Figure

from fewstep.methods.search_space import Choice, LogUniform, Range
from fewstep.orchestrator.observability.line_chart import INCHES, INKS, LINE, STYLE, inline
from fewstep.orchestrator.search.space import Space
from fewstep.orchestrator.search.study import TrialRecord

WIDE = (2 * INCHES[0], INCHES[1])


@dataclass(frozen=True)
class Axis:
    """Where a field's values lie between 0 and 1, and what is written beside."""

    name: str
    ticks: Mapping[str, float]
    positions: Sequence[float]  # of the trials


def parallel_coordinates(trials: Sequence[TrialRecord], space: Space, objective: str, best: Sequence[int]) -> str:
    """A line for each finished trial through what it changed to what it was worth; the best stand out."""
    axes = [_axis(field, range, [trial.changes[field] for trial in trials]) for field, range in space.items()]
    axes.append(_values(objective, [trial.values[objective] for trial in trials]))
    with rc_context({**STYLE, "axes.grid": False, "axes.spines.bottom": False}):
        figure = Figure(WIDE, layout="constrained")
        picture = figure.subplots()
        for x, axis in enumerate(axes):
            picture.axvline(x, color=LINE)
            for label, y in axis.ticks.items():
                picture.annotate(label, (x, y), xytext=(4, 0), textcoords="offset points", va="center", fontsize=8)
        for index, trial in enumerate(trials):
            is_best = trial.number in best
            line = [axis.positions[index] for axis in axes]
            ink, width = (INKS["student"], 2.5) if is_best else (INKS["null"], 1.2)
            picture.plot(line, color=ink, linewidth=width, alpha=1 if is_best else 0.6, zorder=3 if is_best else 2)
        picture.set_xticks(range(len(axes)), [axis.name for axis in axes])
        picture.set_yticks([])
        picture.set_xlim(-0.2, len(axes) - 0.4)
        picture.set_ylim(-0.05, 1.05)
        return inline(figure)


def importance_bars(shares: Mapping[str, float]) -> str:
    """How much each field matters, of 1 in all."""
    with rc_context({**STYLE, "axes.grid.axis": "x"}):
        figure = Figure(INCHES, layout="constrained")
        picture = figure.subplots()
        names = sorted(shares, key=lambda name: shares[name])
        picture.barh(names, [shares[name] for name in names], color=INKS["student"], height=0.6)
        picture.set_xlabel("importance")
        picture.set_xlim(0, 1)
        return inline(figure)


def front_chart(trials: Sequence[TrialRecord], objectives: Sequence[str], front: Sequence[int]) -> str:
    """Every finished trial by its first two objectives; those that no other beats in all are joined."""
    one, other = objectives[:2]
    with rc_context(STYLE):
        figure = Figure(INCHES, layout="constrained")
        picture = figure.subplots()
        for ink, is_best in (("null", False), ("student", True)):
            points = sorted((t.values[one], t.values[other]) for t in trials if (t.number in front) == is_best)
            picture.plot(*zip(*points, strict=True) if points else ((), ()), "o-" if is_best else "o", color=INKS[ink])
        picture.set_xlabel(one)
        picture.set_ylabel(other)
        return inline(figure)


def _axis(field: str, range: Range, values: Sequence[object]) -> Axis:
    name = field.partition(".")[2]
    if isinstance(range, Choice):
        labels = [json.dumps(option) for option in range.options]
        ticks = {label: index / max(1, len(labels) - 1) for index, label in enumerate(labels)}
        return Axis(name, ticks, [ticks[json.dumps(value)] for value in values])
    scale = math.log if isinstance(range, LogUniform) else float
    low, high = scale(range.low), scale(range.high)
    numbers = [value for value in values if isinstance(value, int | float)]  # all of them: a range has no others
    positions = [(scale(number) - low) / (high - low) for number in numbers]
    return Axis(name, {f"{range.low:g}": 0.0, f"{range.high:g}": 1.0}, positions)


def _values(name: str, values: Sequence[float]) -> Axis:
    low, high = min(values), max(values)
    width = (high - low) or 1.0
    return Axis(name, {f"{low:.4g}": 0.0, f"{high:.4g}": 1.0}, [(value - low) / width for value in values])
