"""The committed dashboards, scrape configuration and alerts are those of the registry, and Prometheus takes them."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

pytest.importorskip("grafana_foundation_sdk", reason="needs the extra `dashboards`")

from fewstep.dashboards.__main__ import BUILT, files
from fewstep.dashboards.panels import ROWS, SELECTED
from fewstep.orchestrator.observability.metrics import REGISTRY

promtool = pytest.mark.skipif(
    not shutil.which("promtool"), reason="promtool, of Debian's package prometheus, is absent"
)


def check(*arguments: str | Path) -> None:
    done = subprocess.run(["promtool", *map(str, arguments)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_committed_files_are_what_the_registry_makes() -> None:
    found = {file.relative_to(BUILT).as_posix(): file.read_text() for file in BUILT.rglob("*") if file.is_file()}
    assert found == files(), "run `python -m fewstep.dashboards` and commit what it writes"


def test_every_metric_is_shown_and_no_other() -> None:
    assert {name for panels in ROWS.values() for panel in panels for name in panel.names} == set(REGISTRY)
    board = json.loads((BUILT / "grafana/dashboards/fewstep.json").read_text())
    panels = [panel for panel in board["panels"] if panel["type"] != "row"]
    assert {panel["type"] for panel in panels} == {"timeseries"}
    expressions = [target["expr"] for panel in panels for target in panel["targets"]]
    asked = {name for expr in expressions for name in re.findall(r"ray_\w+", expr)}
    assert asked == {metric.in_prometheus for metric in REGISTRY.values()}
    assert all(expr.count(SELECTED) == 1 for expr in expressions)
    assert [variable["name"] for variable in board["templating"]["list"]] == ["datasource", "run", "method"]


def test_the_numbers_of_one_panel_have_one_unit() -> None:
    for panels in ROWS.values():
        for panel in panels:
            assert len({(metric.unit, metric.kind) for metric in panel.metrics}) == 1, panel.title


@promtool
def test_prometheus_takes_the_configuration_and_the_rules() -> None:
    check("check", "config", BUILT / "prometheus/prometheus.yml")
    check("check", "rules", BUILT / "prometheus/alerts.yml")


@promtool
def test_the_alerts_go_off_where_they_should_and_nowhere_else(tmp_path: Path) -> None:
    shutil.copy(BUILT / "prometheus/alerts.yml", tmp_path)
    shutil.copy(Path(__file__).with_name("alerts_test.yml"), tmp_path)
    check("test", "rules", tmp_path / "alerts_test.yml")
