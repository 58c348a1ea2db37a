"""Write what Prometheus and Grafana read, from the metrics registry: python -m fewstep.dashboards."""

from __future__ import annotations

from pathlib import Path

from fewstep.dashboards import grafana, prometheus

BUILT = Path(__file__).parent / "built"


def files() -> dict[str, str]:
    """Every file below `built`, and what is in it."""
    return {
        "prometheus/prometheus.yml": prometheus.configuration(),
        "prometheus/alerts.yml": prometheus.alerts(),
        "grafana/dashboards/fewstep.json": grafana.run_dashboard(),
        "grafana/provisioning/datasources/prometheus.yml": grafana.data_source(),
        "grafana/provisioning/dashboards/fewstep.yml": grafana.provider(),
    }


if __name__ == "__main__":
    for name, text in files().items():
        file = BUILT / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
