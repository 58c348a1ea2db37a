"""Shows how a run stands in a terminal: what the dashboards show, read from its directory."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from fewstep.orchestrator.observability import metrics
from fewstep.orchestrator.observability.console import console
from fewstep.orchestrator.observability.durations import words
from fewstep.orchestrator.recipe.recipe import Recipe
from fewstep.orchestrator.recipe.section import Json
from fewstep.orchestrator.recipe.teacher import teacher_name
from fewstep.orchestrator.runs.driver_lock import driver_of
from fewstep.orchestrator.runs.run import RESULT, recipe_of, round_folder

LOOK_S = 1.0
STEP_TIMES = ("data", "forward", "backward", "update")  # of a step
Values = Mapping[str, float]


@dataclass(frozen=True)
class Stage:
    """A part of a run, in counts of its unit."""

    name: str
    unit: str
    done: int = 0
    planned: int = 0  # 0 before it has begun
    is_finished: bool = False
    left_s: float = 0.0  # 0 where it cannot be said
    says: tuple[str, ...] = ()  # lines about it


@dataclass(frozen=True)
class Standing:
    """What a run directory says at a moment."""

    run: str
    method: str
    teacher: str
    driver: str  # who works in it, or nothing
    stages: tuple[Stage, ...]
    quality: Values = field(default_factory=dict)  # by what was measured, like kid@4


def watch(folder: Path, *, once: bool) -> Json:
    """Show a run until nobody works in it any more. Raises BadInput where there is none."""
    if once:
        seen = standing_of(folder)
        console.print(frame(seen))
        return dataclasses.asdict(seen)
    with Live(console=console, auto_refresh=False) as live:
        while True:
            seen = standing_of(folder)
            live.update(frame(seen), refresh=True)
            if not seen.driver:
                return dataclasses.asdict(seen)
            time.sleep(LOOK_S)


def standing_of(folder: Path) -> Standing:
    """How a run stands now; nothing is written."""
    recipe = recipe_of(folder)
    driver = driver_of(folder)  # before what it writes last
    rounds = [round_folder(folder, number, round) for number, round in enumerate(recipe.method.build().rounds(), 1)]
    judged = metrics.newest(folder / "evaluation" / "quality.jsonl")
    measured: dict[str, float] = {}
    for round in rounds:
        measured |= metrics.newest(round / "metrics.jsonl")
    return Standing(
        run=folder.resolve().name,
        method=recipe.method.name,
        teacher=teacher_name(recipe.teacher),
        driver=driver,
        stages=(
            _generating(recipe, metrics.newest(folder / "generate.jsonl")),
            *(_training(round) for round in rounds),
            Stage("export", "", is_finished=(folder / "student").exists()),
            _judging(folder / "evaluation"),
        ),
        quality=_terms(judged or measured, "quality/"),
    )


def _generating(recipe: Recipe, values: Values) -> Stage:
    if not values:
        return Stage("generate", "shards")
    planned, done = int(values["generate/shards_planned"]), int(values["generate/shards_committed"])
    given_up, retried = (int(values[f"generate/shards_{name}"]) for name in ("quarantined", "retried"))
    rate = values.get("generate/samples_per_s", 0.0)
    says = f"{rate:.1f} samples/s, {retried} retried, {given_up} set aside"
    left = (planned - done - given_up) * recipe.trajectories.shard_size / rate if rate else 0.0
    return Stage("generate", "shards", done, planned, done + given_up >= planned, left, (says,))


def _training(folder: Path) -> Stage:
    values, name = metrics.newest(folder / "metrics.jsonl"), folder.name.partition("-")[2]
    if "train/steps" not in values:
        return Stage(name, "steps", is_finished=(folder / RESULT).exists())
    step, steps = int(values["train/step"]), int(values["train/steps"])
    is_finished = (folder / RESULT).exists()
    step_s = values.get("time/step_s", 0.0)
    says = _about_training(values) if step_s and not is_finished else ()
    return Stage(name, "steps", step, steps, is_finished, (steps - step) * step_s, says)


def _about_training(values: Values) -> tuple[str, ...]:
    """Losses, time and safety, a line each."""
    numbers = [
        f"{kind} {term} {value:.4g}"
        for kind in ("loss", "grad_norm", "learning_rate")
        for term, value in _terms(values, f"{kind}/").items()
    ]
    step_s = values["time/step_s"]
    shares = [f"{name} {values[f'time/{name}_s'] / step_s:.0%}" for name in STEP_TIMES]
    saved = f"safe since {words(time.time() - values['train/saved_unix_s'])} ago"
    if "time/checkpoint_s" in values:
        saved += f", a checkpoint takes {words(values['time/checkpoint_s'])}"
    recovered = int(values["train/recoveries"])
    return (
        ", ".join(numbers),
        f"{values['train/samples_per_s']:.1f} samples/s, a step {words(step_s)}: {', '.join(shares)}",
        f"{saved}, {recovered} recoveries, {values['train/peak_memory'] / 1e9:.2f} GB at most",
    )


def _judging(evaluation: Path) -> Stage:
    values = metrics.newest(evaluation / "progress.jsonl")
    done, planned = (int(values.get(f"evaluate/{name}", 0)) for name in ("samples", "samples_planned"))
    return Stage("evaluate", "samples", done, planned, (evaluation / "claims.json").exists())


def _terms(values: Values, family: str) -> dict[str, float]:
    return {key.removeprefix(family): value for key, value in values.items() if key.startswith(family)}


def frame(seen: Standing) -> RenderableType:
    """One picture of it."""
    state = f"{seen.driver} works in it" if seen.driver else "nobody works in it"
    table = Table.grid(padding=(0, 2))
    lines: list[RenderableType] = [Text(f"{seen.run}: {seen.method} on {seen.teacher}; {state}", style="bold"), table]
    for stage in seen.stages:
        total = stage.planned or 1
        bar = ProgressBar(total=total, completed=total if stage.is_finished else stage.done, width=30)
        counts = f"{stage.done}/{stage.planned} {stage.unit}" if stage.planned else ""
        left = "done" if stage.is_finished else f"{words(stage.left_s)} left" if stage.left_s else ""
        table.add_row(stage.name, bar, counts, left)
    lines += [Text(f"{stage.name}: {line}") for stage in seen.stages for line in stage.says]
    if seen.quality:
        lines.append(Text("quality: " + ", ".join(f"{name} {value:.4g}" for name, value in seen.quality.items())))
    return Group(*lines)
