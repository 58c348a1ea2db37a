"""Every number that fewstep measures while it runs: one registry for Ray's metrics, JSONL files and dashboards."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import ray
from ray.util import metrics as ray_metrics


@dataclass(frozen=True)
class Metric:
    """A number with a name. `term` tells apart the parts of one metric, like the terms of a loss."""

    name: str
    kind: Literal["gauge", "counter"]
    unit: str
    help: str
    has_term: bool = False


_ALL = (
    Metric("generate/samples", "counter", "samples", "Trajectories committed"),
    Metric("generate/teacher_evaluations", "counter", "evaluations", "Teacher evaluations behind committed samples"),
    Metric("generate/bytes", "counter", "bytes", "Bytes of committed shards"),
    Metric("generate/shards_planned", "gauge", "shards", "Shards of the plan"),
    Metric("generate/shards_committed", "gauge", "shards", "Shards committed so far"),
    Metric("generate/shards_retried", "counter", "shards", "Attempts at a shard that failed"),
    Metric("generate/shards_quarantined", "gauge", "shards", "Shards given up"),
    Metric("loss", "gauge", "1", "A weighted term of a network's loss", has_term=True),
    Metric("grad_norm", "gauge", "1", "Gradient norm of a network before clipping", has_term=True),
    Metric("learning_rate", "gauge", "1", "Learning rate of a network", has_term=True),
    Metric("train/step", "gauge", "steps", "Training step within the round"),
    Metric("train/samples_per_s", "gauge", "samples/s", "Training samples per second, all workers"),
    Metric("train/peak_memory", "gauge", "bytes", "Most memory that the first worker held, on its device if any"),
    Metric("time/step_s", "gauge", "s", "Duration of a training step"),
    Metric("time/data_s", "gauge", "s", "Part of a step spent waiting for rows"),
    Metric("time/checkpoint_s", "gauge", "s", "Duration of the last checkpoint"),
    Metric("train/recoveries", "counter", "recoveries", "Times a round continued from a checkpoint"),
    Metric("quality", "gauge", "1", "A measured quality of the student", has_term=True),
)
REGISTRY: dict[str, Metric] = {metric.name: metric for metric in _ALL}


def find(key: str) -> tuple[Metric, str]:
    """The metric and the term that a key like "loss/student/consistency" stands for. Raises KeyError."""
    if key in REGISTRY:
        return REGISTRY[key], ""
    name, _, term = key.partition("/")
    if name in REGISTRY and REGISTRY[name].has_term and term:
        return REGISTRY[name], term
    raise KeyError(f"{key!r} is not in the metrics registry")


class Recorder:
    """Writes rows of a run to a JSONL file, and to Ray's metrics where Ray runs."""

    def __init__(self, file: Path, run: str) -> None:
        file.parent.mkdir(parents=True, exist_ok=True)
        self._file, self._run = file, run
        self._exported: dict[str, ray_metrics.Gauge | ray_metrics.Counter] = {}

    def record(self, step: int, values: Mapping[str, float]) -> None:
        """One row; every key must be in the registry."""
        row = {"step": step, "unix_s": round(time.time(), 3), **values}
        with self._file.open("a") as stream:
            stream.write(json.dumps(row) + "\n")
        if ray.is_initialized():
            for key, value in values.items():
                self._export(key, value)

    def _export(self, key: str, value: float) -> None:
        metric, term = find(key)
        tags = {"run": self._run} | ({"term": term} if metric.has_term else {})
        if metric.name not in self._exported:
            cls = ray_metrics.Gauge if metric.kind == "gauge" else ray_metrics.Counter
            name = "fewstep_" + metric.name.replace("/", "_")
            self._exported[metric.name] = cls(name, f"{metric.help} ({metric.unit})", tuple(tags))
        exported = self._exported[metric.name]
        if isinstance(exported, ray_metrics.Gauge):
            exported.set(value, tags)
        elif value:
            exported.inc(value, tags)


def read(file: Path) -> list[dict[str, float]]:
    """The rows of a JSONL file; where a step was repeated after a crash, its last row."""
    if not file.exists():
        return []
    rows: dict[float, dict[str, float]] = {}
    for line in file.read_text().splitlines():
        # A kill can cut the last line short; the step it belonged to is repeated.
        if line.endswith("}"):
            row = json.loads(line)
            rows[row["step"]] = row
    return [rows[step] for step in sorted(rows)]
