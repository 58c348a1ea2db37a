"""Choose what a dashboard shows of a run: rows of panels, and the expression that asks for each number."""

from __future__ import annotations

from dataclasses import dataclass

from fewstep.orchestrator.observability.metrics import REGISTRY, Metric

SELECTED = 'run=~"$run", method=~"$method"'
UNITS = {"bytes": "decbytes", "s": "s", "unix s": "s", "1": "none"}  # Grafana's names


@dataclass(frozen=True)
class Panel:
    """Metrics with one axis."""

    title: str
    names: tuple[str, ...]
    is_stacked: bool = False

    @property
    def metrics(self) -> tuple[Metric, ...]:
        """As the registry has them. Raises KeyError for a name that it has not."""
        return tuple(REGISTRY[name] for name in self.names)

    @property
    def unit(self) -> str:
        """Of the axis, as Grafana calls it."""
        first = self.metrics[0]
        if first.kind == "counter":
            return "Bps" if first.unit == "bytes" else f"suffix: {first.unit}/s"
        return UNITS.get(first.unit, f"suffix: {first.unit}")


ROWS: dict[str, tuple[Panel, ...]] = {
    "Trajectories": (
        Panel("Shards", ("generate/shards_planned", "generate/shards_committed")),
        Panel("Shards that failed", ("generate/shards_retried", "generate/shards_quarantined")),
        Panel("Trajectories since generating began", ("generate/samples_per_s",)),
        Panel("Trajectories", ("generate/samples",)),
        Panel("Teacher evaluations", ("generate/teacher_evaluations",)),
        Panel("Written", ("generate/bytes",)),
    ),
    "Training": (
        Panel("Losses", ("loss",)),
        Panel("Gradient norms", ("grad_norm",)),
        Panel("Learning rates", ("learning_rate",)),
        Panel("Steps", ("train/steps", "train/step")),
        Panel("Samples", ("train/samples_per_s",)),
        Panel("Loss terms that are no number", ("train/not_finite",)),
    ),
    "Where the time goes": (
        Panel("A step", ("time/data_s", "time/forward_s", "time/backward_s", "time/update_s"), is_stacked=True),
        Panel("Steps and checkpoints", ("time/step_s", "time/checkpoint_s")),
        Panel("Since training was last safe", ("train/saved_unix_s",)),
        Panel("Recoveries", ("train/recoveries",)),
        Panel("Peak memory", ("train/peak_memory",)),
    ),
    "Quality": (
        Panel("Quality of the student", ("quality",)),
        Panel("Samples judged", ("evaluate/samples_planned", "evaluate/samples")),
        Panel("Trials of a search", ("search",)),
    ),
}


def expression(metric: Metric) -> str:
    """PromQL: one series for each run, method and term, whichever worker it comes from."""
    series, tags = f"{metric.in_prometheus}{{{SELECTED}}}", ", ".join(metric.tags)
    if metric.kind == "counter":
        return f"sum by ({tags}) (rate({series}[$__rate_interval]))"
    newest = f"max by ({tags}) ({series})"
    return f"time() - {newest}" if metric.unit == "unix s" else newest


def legend(panel: Panel, metric: Metric) -> str:
    """What tells the series of a panel apart."""
    parts = ["{{run}}", *(["{{term}}"] if metric.has_term else [])]
    return " ".join([*parts, *([metric.name.rpartition("/")[2]] if len(panel.names) > 1 else [])])
