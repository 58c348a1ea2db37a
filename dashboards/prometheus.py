"""Tell Prometheus where Ray's numbers are, and when to call somebody."""

from __future__ import annotations

from dataclasses import dataclass

import yaml

from fewstep.orchestrator.observability.metrics import REGISTRY

DISCOVERY = "/tmp/ray/prom_metrics_service_discovery.json"  # which Ray's head keeps up to date
INTERVAL = "10s"  # as often as Ray exports


@dataclass(frozen=True)
class Alert:
    """A condition that somebody should hear of."""

    name: str
    expr: str
    lasting: str  # before it counts
    says: str


def _series(name: str) -> str:
    return REGISTRY[name].in_prometheus


def _standing(name: str, goal: str, minutes: int) -> str:
    """A count that is below its goal and has not moved."""
    count = _series(name)
    return f"changes({count}[{minutes}m]) == 0 and {count} < {_series(goal)}"


ALERTS = (
    Alert(
        "FewstepGeneratingStands",
        _standing("generate/shards_committed", "generate/shards_planned", 30)
        + f" - {_series('generate/shards_quarantined')}",
        "30m",
        "{{ $labels.run }} has committed no shard for half an hour",
    ),
    Alert(
        "FewstepTrainingStands",
        _standing("train/step", "train/steps", 10),
        "10m",
        "{{ $labels.run }} has reported no training step for 10 minutes",
    ),
    Alert(
        "FewstepLossIsNoNumber",
        f"max_over_time({_series('train/not_finite')}[5m]) > 0",
        "0s",
        "{{ $value }} loss terms of {{ $labels.run }} are not finite",
    ),
    Alert(
        "FewstepShardsSetAside",
        f"{_series('generate/shards_quarantined')} > 0",
        "0s",
        "{{ $value }} shards of {{ $labels.run }} were given up; the same command tries them again",
    ),
    Alert(
        "FewstepCheckpointIsOld",
        f"time() - {_series('train/saved_unix_s')} > 3600",
        "5m",
        "{{ $labels.run }} would lose {{ $value | humanizeDuration }} of training",
    ),
)


def configuration(discovery: str = DISCOVERY, rules: str = "alerts.yml", interval: str = INTERVAL) -> str:
    """prometheus.yml."""
    # Prometheus cannot follow a file whose folder is not there yet, so it looks again and again.
    file_discovery = {"files": [discovery], "refresh_interval": interval}
    settings = {
        "global": {"scrape_interval": interval, "evaluation_interval": interval},
        "rule_files": [rules],
        "scrape_configs": [{"job_name": "ray", "file_sd_configs": [file_discovery]}],
    }
    return yaml.safe_dump(settings, sort_keys=False)


def alerts() -> str:
    """alerts.yml."""
    rules = [
        {
            "alert": alert.name,
            "expr": alert.expr,
            "for": alert.lasting,
            "labels": {"severity": "warning"},
            "annotations": {"summary": alert.says},
        }
        for alert in ALERTS
    ]
    return yaml.safe_dump({"groups": [{"name": "fewstep", "rules": rules}]}, sort_keys=False, width=1000)
