"""Line charts as inline SVG: no script, no font, and colours that the page decides."""

from __future__ import annotations

import html
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

WIDTH, HEIGHT = 560, 340
LEFT, RIGHT, TOP, BOTTOM = 62, 18, 14, 46


@dataclass(frozen=True)
class Series:
    """A line; `css` is its class on the page. Intervals are drawn as bars where there are any."""

    name: str
    css: str
    points: Sequence[tuple[float, float]]
    intervals: Sequence[tuple[float, float]] = field(default=())
    has_dots: bool = True


@dataclass(frozen=True)
class Band:
    """A range of values across the chart."""

    name: str
    css: str
    low: float
    high: float


@dataclass(frozen=True)
class Axis:
    """How values become places."""

    ticks: Sequence[tuple[float, str]]
    place: Callable[[float], float]


def line_chart(series: Sequence[Series], x_name: str, y_name: str, *, bands: Sequence[Band] = (), log_x: bool) -> str:
    """Values on a logarithmic y axis; what is 0 or less lies on its floor."""
    values = [y for line in series for _, y in line.points] + [
        end for line in series for ends in line.intervals for end in ends
    ]
    values += [band.high for band in bands]
    y = _log_axis([value for value in values if value > 0], (HEIGHT - BOTTOM, TOP))
    xs = sorted({x for line in series for x, _ in line.points})
    x = _steps_axis(xs) if log_x else _linear_axis(xs)
    # Side by side, so that one interval does not hide another.
    beside = [(line, 5 * (place - (len(series) - 1) / 2) if log_x else 0.0) for place, line in enumerate(series)]
    parts = [_grid(x, y), *(_band(band, y) for band in bands), *(_line(line, x, y, shift) for line, shift in beside)]
    parts.append(_text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 8, x_name, "middle", "name"))
    turned = f'transform="translate(14 {(TOP + HEIGHT - BOTTOM) / 2}) rotate(-90)"'
    parts.append(f"<g {turned}>{_text(0, 0, y_name, 'middle', 'name')}</g>")
    title = html.escape(f"{y_name} by {x_name}")
    return f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{title}">{"".join(parts)}</svg>'


def legend(series: Sequence[Series], bands: Sequence[Band] = ()) -> str:
    """Names beside their colours."""
    items = [*series, *bands]
    return "".join(f'<span class="key {item.css}"><i></i>{html.escape(item.name)}</span>' for item in items)


def _log_axis(values: Sequence[float], ends: tuple[float, float]) -> Axis:
    low, high = math.log10(min(values) * 0.8), math.log10(max(values) * 1.25)
    mantissas = (1, 2, 5) if high - low < 2.5 else (1,)
    powers = range(math.floor(low), math.ceil(high) + 1)
    ticks = [m * 10.0**p for p in powers for m in mantissas if low <= math.log10(m * 10.0**p) <= high]

    def place(value: float) -> float:
        part = (math.log10(max(value, 10**low)) - low) / (high - low)
        return ends[0] + part * (ends[1] - ends[0])

    return Axis([(tick, f"{tick:g}") for tick in ticks], place)


def _steps_axis(steps: Sequence[float]) -> Axis:
    low, high = math.log2(steps[0]), math.log2(max(steps[-1], 2 * steps[0]))
    inner = WIDTH - LEFT - RIGHT - 40
    return Axis([(s, f"{s:g}") for s in steps], lambda s: LEFT + 20 + inner * (math.log2(s) - low) / (high - low))


def _linear_axis(values: Sequence[float]) -> Axis:
    high = max(values[-1], 1)
    step = 10 ** math.floor(math.log10(high))
    step = next(s for s in (step / 5, step / 2, step, 2 * step) if high / s <= 6)
    ticks = [(step * i, f"{step * i:g}") for i in range(int(high / step) + 1)]
    return Axis(ticks, lambda value: LEFT + (WIDTH - LEFT - RIGHT) * value / high)


def _grid(x: Axis, y: Axis) -> str:
    lines = []
    for value, label in y.ticks:
        at = y.place(value)
        lines.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{at:.1f}" y2="{at:.1f}"/>')
        lines.append(_text(LEFT - 8, at + 4, label, "end", "tick"))
    lines += [_text(x.place(value), HEIGHT - BOTTOM + 18, label, "middle", "tick") for value, label in x.ticks]
    floor = HEIGHT - BOTTOM
    return "".join(lines) + f'<line class="axis" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{floor}" y2="{floor}"/>'


def _band(band: Band, y: Axis) -> str:
    top, bottom = y.place(band.high), y.place(band.low)
    size = f'width="{WIDTH - LEFT - RIGHT}" height="{max(2.0, bottom - top):.1f}"'
    return f'<rect class="band {band.css}" x="{LEFT}" y="{top:.1f}" {size}/>'


def _line(line: Series, x: Axis, y: Axis, shift: float) -> str:
    places = [(x.place(a) + shift, y.place(b)) for a, b in line.points]
    path = " ".join(f"{a:.1f},{b:.1f}" for a, b in places)
    parts = [f'<polyline points="{path}"/>']
    for (a, _), (low, high) in zip(places, line.intervals, strict=bool(line.intervals)):
        parts.append(f'<line x1="{a:.1f}" x2="{a:.1f}" y1="{y.place(low):.1f}" y2="{y.place(high):.1f}"/>')
    if line.has_dots:
        parts += [f'<circle cx="{a:.1f}" cy="{b:.1f}" r="4.5"/>' for a, b in places]
    return f'<g class="line {line.css}">{"".join(parts)}</g>'


def _text(x: float, y: float, words: str, anchor: str, css: str) -> str:
    return f'<text class="{css}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{html.escape(words)}</text>'
