"""Build the Grafana dashboard of a run with Grafana's own SDK, and what makes Grafana load it."""

from __future__ import annotations

import json

import yaml
from grafana_foundation_sdk.builders import common, dashboard, prometheus, timeseries
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models import common as kinds
from grafana_foundation_sdk.models.dashboard import DashboardCursorSync, DataSourceRef, VariableRefresh

from fewstep.dashboards.panels import ROWS, Panel, expression, legend

SOURCE = DataSourceRef(type_val="prometheus", uid="${datasource}")
HEIGHT, WIDTH = 8, 8  # of a panel; a page is 24 wide
FOLDER = "/var/lib/grafana/dashboards"  # where Grafana looks for them


def run_dashboard() -> str:
    """The JSON of the dashboard."""
    built = (
        dashboard.Dashboard("fewstep")
        .uid("fewstep")
        .tags(["fewstep"])
        .refresh("10s")
        .time("now-1h", "now")
        .timezone("browser")
        .tooltip(DashboardCursorSync.CROSSHAIR)
        .with_variable(dashboard.DatasourceVariable("datasource").label("source").type("prometheus"))
        .with_variable(_choice("run", '{__name__=~"ray_fewstep_.+"}'))
        .with_variable(_choice("method", '{__name__=~"ray_fewstep_.+", run=~"$run"}'))
    )
    for title, panels in ROWS.items():
        built.with_row(dashboard.Row(title))
        for panel in panels:
            built.with_panel(_timeseries(panel))
    return json.dumps(built.build(), cls=JSONEncoder, indent=1, sort_keys=True) + "\n"


def _choice(tag: str, series: str) -> dashboard.QueryVariable:
    """Any of the values that a tag has."""
    return (
        dashboard.QueryVariable(tag)
        .datasource(SOURCE)
        .query(f"label_values({series}, {tag})")
        .refresh(VariableRefresh.ON_TIME_RANGE_CHANGED)
        .multi(True)
        .include_all(True)
        .all_value(".*")
    )


def _timeseries(panel: Panel) -> timeseries.Panel:
    built = (
        timeseries.Panel()
        .title(panel.title)
        .description("\n\n".join(f"{metric.help} ({metric.unit})" for metric in panel.metrics))
        .datasource(SOURCE)
        .unit(panel.unit)
        .height(HEIGHT)
        .span(WIDTH)
        .span_nulls(True)
        .fill_opacity(40 if panel.is_stacked else 0)
    )
    if panel.is_stacked:
        built.stacking(common.StackingConfig().mode(kinds.StackingMode.NORMAL))
    for letter, metric in zip("ABCDEF", panel.metrics, strict=False):
        query = prometheus.Dataquery().expr(expression(metric)).legend_format(legend(panel, metric)).ref_id(letter)
        built.with_target(query.datasource(SOURCE))
    return built


def data_source() -> str:
    """The YAML that tells Grafana of Prometheus."""
    settings = {
        "apiVersion": 1,
        "datasources": [
            {
                "name": "Prometheus",
                "type": "prometheus",
                "access": "proxy",
                "url": "http://localhost:9090",
                "isDefault": True,
                "jsonData": {"timeInterval": "10s"},
            }
        ],
    }
    return yaml.safe_dump(settings, sort_keys=False)


def provider() -> str:
    """The YAML that tells Grafana where its dashboards are."""
    settings = {"name": "fewstep", "type": "file", "options": {"path": FOLDER}}
    return yaml.safe_dump({"apiVersion": 1, "providers": [settings]}, sort_keys=False)
