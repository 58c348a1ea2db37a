"""Names every number that fewstep measures while it runs, and records it: in JSONL files, and in Ray's metrics."""

from __future__ import annotations

import contextlib
import json
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from ray.util import metrics as ray_metrics


REFRESH_S = 5.0


@dataclass(frozen=True)
class Metric:
    """A number with a name. `term` tells apart the parts of one metric, like the terms of a loss.

    A gauge is recorded as it stands, a counter as what came to it.
    """

    name: str
    kind: Literal["gauge", "counter"]
    unit: str
    help: str
    has_term: bool = False

    @property
    def tags(self) -> tuple[str, ...]:
        """What tells its series apart: few values each, whatever a run's size."""
        return ("run", "method", "term") if self.has_term else ("run", "method")

    @property
    def in_ray(self) -> str:
        """Its name in Ray, where a name has no slashes."""
        return "fewstep_" + self.name.replace("/", "_")

    @property
    def in_prometheus(self) -> str:
        """Its name as Ray exports it."""
        return f"ray_{self.in_ray}" + ("_total" if self.kind == "counter" else "")


_ALL = (
    Metric("generate/samples", "counter", "samples", "Trajectories committed"),
    Metric("generate/samples_per_s", "gauge", "samples/s", "Trajectories per second since generating began"),
    Metric("generate/teacher_evaluations", "counter", "evaluations", "Teacher evaluations behind committed samples"),
    Metric("generate/bytes", "counter", "bytes", "Bytes of committed shards"),
    Metric("generate/shards_planned", "gauge", "shards", "Shards of the plan"),
    Metric("generate/shards_committed", "gauge", "shards", "Shards committed so far"),
    Metric("generate/shards_retried", "gauge", "shards", "Attempts at a shard that failed, since generating began"),
    Metric("generate/shards_quarantined", "gauge", "shards", "Shards given up"),
    Metric("loss", "gauge", "1", "A weighted term of a network's loss", has_term=True),
    Metric("grad_norm", "gauge", "1", "Gradient norm of a network before clipping", has_term=True),
    Metric("learning_rate", "gauge", "1", "Learning rate of a network", has_term=True),
    Metric("train/step", "gauge", "steps", "Training step within the round"),
    Metric("train/steps", "gauge", "steps", "Training steps of the round"),
    Metric("train/samples_per_s", "gauge", "samples/s", "Training samples per second, all workers"),
    Metric("train/not_finite", "gauge", "terms", "Terms of the losses that are no finite number"),
    Metric("train/peak_memory", "gauge", "bytes", "Most memory that the first worker held, on its device if any"),
    Metric("train/saved_unix_s", "gauge", "unix s", "When training was last safe: its last checkpoint, or its start"),
    Metric("train/recoveries", "gauge", "recoveries", "Times that the round went on after an interruption"),
    Metric("time/step_s", "gauge", "s", "Duration of a training step"),
    Metric("time/data_s", "gauge", "s", "Part of a step spent waiting for rows"),
    Metric("time/forward_s", "gauge", "s", "Part of a step spent on losses"),
    Metric("time/backward_s", "gauge", "s", "Part of a step spent on gradients"),
    Metric("time/update_s", "gauge", "s", "Part of a step spent in optimizers and averages"),
    Metric("time/checkpoint_s", "gauge", "s", "How long training stood still for the last checkpoint"),
    Metric("quality", "gauge", "1", "A measured quality of the student: which, and at how many steps", has_term=True),
    Metric("search", "gauge", "trials", "Trials of a search by what has become of them", has_term=True),
    Metric("evaluate/samples", "gauge", "samples", "Samples judged so far, of those that were missing"),
    Metric("evaluate/samples_planned", "gauge", "samples", "Samples to be judged"),
)
REGISTRY: dict[str, Metric] = {metric.name: metric for metric in _ALL}


def find(key: str) -> tuple[Metric, str]:
    """The metric and the term that a key like "loss/student/consistency" stands for. Raises KeyError."""
    if key in REGISTRY and not REGISTRY[key].has_term:
        return REGISTRY[key], ""
    name, _, term = key.partition("/")
    if name in REGISTRY and REGISTRY[name].has_term and term:
        return REGISTRY[name], term
    raise KeyError(f"{key!r} is not in the metrics registry")


class Recorder:
    """Writes rows of a run to a JSONL file, and to Ray's metrics where Ray runs."""

    def __init__(self, file: Path, run: str, method: str) -> None:
        file.parent.mkdir(parents=True, exist_ok=True)
        self._file, self._tags = file, {"run": run, "method": method}

    def record(self, step: int, values: Mapping[str, float]) -> None:
        """Append a row. Raises KeyError for a key that is not in the registry."""
        metrics = {key: find(key) for key in values}
        row = {"step": step, "unix_s": round(time.time(), 3), **values}
        with self._file.open("a+b") as stream:
            stream.seek(max(0, stream.seek(0, os.SEEK_END) - 1))
            start = b"" if stream.read() in (b"", b"\n") else b"\n"  # where a kill cut the last line short
            stream.write(start + json.dumps(row).encode() + b"\n")
        if _runs_on_ray():
            for key, (metric, term) in metrics.items():
                tags = self._tags | ({"term": term} if metric.has_term else {})
                _exporter().export(metric, tags, values[key])


class Exporter:
    """This process's numbers for Ray, which forgets a gauge 20 s after it was set: each is set again until the end."""

    def __init__(self) -> None:
        self._metrics: dict[str, ray_metrics.Gauge | ray_metrics.Counter] = {}
        self._standing: dict[tuple[str, ...], Callable[[], None]] = {}  # sets each gauge to its last value
        threading.Thread(target=self._refresh, daemon=True, name="metrics").start()

    def export(self, metric: Metric, tags: Mapping[str, str], value: float) -> None:
        """Set a gauge to a value, or add the value to a counter."""
        from ray.util.metrics import Counter, Gauge

        if metric.name not in self._metrics:
            cls = Gauge if metric.kind == "gauge" else Counter
            self._metrics[metric.name] = cls(metric.in_ray, f"{metric.help} ({metric.unit})", metric.tags)
        ray_metric = self._metrics[metric.name]
        if isinstance(ray_metric, Gauge):
            # Ray leaves out what is not finite: `train/not_finite` counts those.
            ray_metric.set(value, dict(tags))
            self._standing[metric.name, *tags.values()] = partial(ray_metric.set, value, dict(tags))
        elif value:
            ray_metric.inc(value, dict(tags))

    def _refresh(self) -> None:
        while True:
            time.sleep(REFRESH_S)
            if _runs_on_ray():
                for set_again in list(self._standing.values()):
                    set_again()


def _runs_on_ray() -> bool:
    """Whether this process is connected to Ray, which it is not where it has never imported it."""
    ray = sys.modules.get("ray")
    return ray is not None and ray.is_initialized()


@cache
def _exporter() -> Exporter:
    return Exporter()


def read(file: Path) -> list[dict[str, float]]:
    """The rows of a JSONL file by step; where a step was repeated after a crash, what was written last."""
    rows: dict[float, dict[str, float]] = {}
    for row in _rows(file):
        rows[row["step"]] = rows.get(row["step"], {}) | row
    return [rows[step] for step in sorted(rows)]


def newest(file: Path) -> dict[str, float]:
    """The last value of every key of a JSONL file."""
    values: dict[str, float] = {}
    for row in _rows(file):
        values |= row
    return values


def _rows(file: Path) -> Iterator[dict[str, float]]:
    if not file.exists():
        return
    for line in file.read_text().splitlines():
        # A kill can cut a line short; the step it belonged to is repeated.
        with contextlib.suppress(json.JSONDecodeError):
            yield json.loads(line)
