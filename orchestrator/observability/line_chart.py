"""Draws line charts by matplotlib, as inline SVG whose colours and fonts the page decides."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass, field

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogFormatter, NullLocator

INCHES = (5.6, 3.5)
# matplotlib writes a colour as it gets it, so each of these stands for a variable of the page's style sheet.
INKS = {name: f"#fe00{index:02x}" for index, name in enumerate(("student", "teacher", "null", "third", "fourth"))}
SOFT, LINE = "#fe00f0", "#fe00f1"
VARIABLES = {ink: name for name, ink in INKS.items()} | {SOFT: "soft", LINE: "line"}
STYLE: dict = {
    "svg.fonttype": "none",  # text stays text
    "svg.hashsalt": "fewstep",  # the same chart has the same bytes
    "font.size": 9.5,
    "text.color": SOFT,
    "axes.edgecolor": SOFT,
    "axes.labelcolor": SOFT,
    "axes.spines.left": False,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "grid.color": LINE,
    "xtick.color": SOFT,
    "ytick.color": SOFT,
    "ytick.left": False,
    "ytick.minor.left": False,
    "legend.frameon": False,
}


@dataclass(frozen=True)
class Series:
    """A line; `ink` is one of INKS. Intervals are drawn as bars where there are any."""

    name: str
    ink: str
    points: Sequence[tuple[float, float]]
    intervals: Sequence[tuple[float, float]] = field(default=())


@dataclass(frozen=True)
class Band:
    """A range of values across the chart."""

    name: str
    ink: str
    low: float
    high: float


def line_chart(series: Sequence[Series], x_name: str, y_name: str, *, bands: Sequence[Band] = (), log_x: bool) -> str:
    """Values on a logarithmic y axis; what is 0 or less lies on its floor."""
    with rc_context(STYLE):
        figure = Figure(INCHES, layout="constrained")
        axes = figure.subplots()
        values = [y for line in series for _, y in line.points]
        values += [end for line in series for ends in line.intervals for end in ends] + [band.high for band in bands]
        floor, top = 0.8 * min(value for value in values if value > 0), 1.25 * max(values)
        for index, line in enumerate(series):
            # Side by side, so that one interval does not hide another.
            _draw(axes, line, floor, 1 + 0.04 * (index - (len(series) - 1) / 2) if log_x else 1.0)
        for band in bands:
            low, high = max(band.low, floor), max(band.high, 1.05 * floor)
            axes.axhspan(low, high, color=INKS[band.ink], alpha=0.25, linewidth=0, label=band.name)
        if log_x:
            steps = sorted({x for line in series for x, _ in line.points})
            axes.set_xscale("log", base=2)
            axes.set_xticks(steps, [f"{step:g}" for step in steps])
        axes.set_yscale("log")
        axes.set_ylim(floor, top)
        axes.set_xlabel(x_name)
        axes.set_ylabel(y_name)
        axes.yaxis.set_major_formatter(_PlainNumbers())
        axes.yaxis.set_minor_formatter(_PlainNumbers(minor_thresholds=(2, 0.5)))
        axes.xaxis.set_minor_locator(NullLocator())
        figure.legend(loc="outside upper left", ncols=3)
        return inline(figure)


class _PlainNumbers(LogFormatter):
    """0.01, not 10^-2; matplotlib's own choice of which ticks to label."""

    def _num_to_string(self, x: float, vmin: float, vmax: float) -> str:
        return f"{x:g}"


def _draw(axes: Axes, line: Series, floor: float, shift: float) -> None:
    xs = [x * shift for x, _ in line.points]
    ys = [max(y, floor) for _, y in line.points]
    ink = INKS[line.ink]
    axes.plot(xs, ys, color=ink, linewidth=2, marker="o" if line.intervals else "", label=line.name)
    if line.intervals:
        lows, highs = ([max(end, floor) for end in side] for side in zip(*line.intervals, strict=True))
        axes.vlines(xs, lows, highs, color=ink, linewidth=2)


def inline(figure: Figure) -> str:
    """The figure as SVG for a page."""
    file = io.StringIO()
    figure.savefig(file, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    svg = file.getvalue()
    svg = svg[svg.index("<svg") :]
    for ink, variable in VARIABLES.items():
        svg = svg.replace(ink, f"var(--{variable})")
    return svg
