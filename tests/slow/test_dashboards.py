"""A real Prometheus scrapes a real run: the dashboard's panels show it."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import subprocess
import sys
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import pytest
import yaml

from fewstep.dashboards.prometheus import configuration
from fewstep.orchestrator.observability.metrics import REGISTRY
from tests.support import tiny
from tests.support.ports import free_port
from tests.support.source import ROOT

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not shutil.which("prometheus"), reason="Prometheus (Debian's package) is absent"),
]
BOARD = json.loads((ROOT / "dashboards/built/grafana/dashboards/fewstep.json").read_text())
PANELS = {panel["title"]: panel for panel in BOARD["panels"] if panel["type"] != "row"}
RAYS_OWN = {"Component", "NodeAddress", "SessionName", "Version", "WorkerId"}
SEARCH = "search"  # as a run is called
PROMETHEUS_OWN = {"__name__", "instance", "job", "ray_io_cluster"}


ENVIRONMENT = {
    **os.environ,
    "RAY_AUTH_MODE": "token",
    "RAY_AUTH_TOKEN": secrets.token_hex(32),
    "RAY_raylet_start_wait_time_s": "180",  # on a busy machine
}


@contextmanager
def started(*command: str | Path, log: Path) -> Iterator[None]:
    """A process, while it is needed."""
    with log.open("w") as stream:
        words = [str(part) for part in command]
        process = subprocess.Popen(words, stdout=stream, stderr=stream, cwd=ROOT, env=ENVIRONMENT)
        try:
            yield
        finally:
            process.terminate()
            process.wait(60)


def fewstep(verb: str, data: Mapping[str, object], folder: Path) -> None:
    file = folder / f"{verb}.yaml"
    file.write_text(yaml.safe_dump(json.loads(json.dumps(data))))
    command = [sys.executable, "-m", "fewstep", verb, str(file)]
    done = subprocess.run(command, cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]


def until(found: object, seconds: float = 120) -> None:
    ends = time.monotonic() + seconds
    while not found():  # pyright: ignore[reportCallIssue]
        assert time.monotonic() < ends
        time.sleep(0.5)


class Prometheus:
    """Its API on loopback."""

    def __init__(self, port: int) -> None:
        self.url = f"http://127.0.0.1:{port}"

    def ask(self, path: str, **told: object) -> list[Mapping]:
        with urllib.request.urlopen(f"{self.url}/api/v1/{path}?{urllib.parse.urlencode(told)}", timeout=30) as answer:
            return json.load(answer)["data"]

    def is_up(self) -> bool:
        try:
            return urllib.request.urlopen(f"{self.url}/-/ready", timeout=5).status == 200
        except OSError:
            return False


@pytest.fixture(scope="module")
def scraped(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Prometheus, float]]:
    """A Prometheus that has watched a whole run on a Ray cluster, and when that began."""
    folder = tmp_path_factory.mktemp("scraped")
    temporary = Path("/tmp") / f"fewstep-{os.getpid()}"  # Ray's sockets need a short path
    ports = [free_port() for _ in range(3)]
    fast = json.dumps({"metrics_report_interval_ms": 1000})
    ray_head = [
        *(Path(sys.executable).with_name("ray"), "start", "--head", "--block", "--disable-usage-stats"),
        *("--node-ip-address=127.0.0.1", f"--port={ports[0]}", "--num-cpus=2", f"--system-config={fast}"),
        *(f"--dashboard-port={ports[1]}", "--object-store-memory=200000000", f"--temp-dir={temporary}"),
    ]
    (folder / "prometheus.yml").write_text(
        configuration(
            str(temporary / "prom_metrics_service_discovery.json"),
            str(ROOT / "dashboards/built/prometheus/alerts.yml"),
            "1s",
        )
    )
    told = [
        f"--config.file={folder / 'prometheus.yml'}",
        f"--storage.tsdb.path={folder / 'data'}",
        f"--web.listen-address=127.0.0.1:{ports[2]}",
    ]
    prometheus, began = Prometheus(ports[2]), time.time()
    try:
        with (
            started(*ray_head, log=folder / "ray.log"),
            started("prometheus", *told, log=folder / "prometheus.log"),
        ):
            until(prometheus.is_up)
            until((temporary / "prom_metrics_service_discovery.json").exists)
            data = tiny.recipe_data(folder)
            data["training"] |= {"steps": 60, "checkpoint_every": 20, "log_every": 2}  # pyright: ignore[reportOperatorIssue]
            data["resources"] = {"address": f"127.0.0.1:{ports[0]}"}
            fewstep("run", data, folder)
            data["training"] |= {"steps": 8, "evaluate_every": 2}  # pyright: ignore[reportOperatorIssue]
            data["search"] = {**tiny.search_data(folder), "trials": 1}
            fewstep("search", {**data, "output": str(folder / SEARCH)}, folder)
            time.sleep(5)
            yield prometheus, began
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


@pytest.mark.parametrize("title", PANELS)
def test_a_panel_shows_the_run(title: str, scraped: tuple[Prometheus, float]) -> None:
    prometheus, began = scraped
    for target in PANELS[title]["targets"]:
        query = target["expr"].replace("$__rate_interval", "15s").replace("$run", ".*").replace("$method", ".*")
        found = prometheus.ask("query_range", query=query, start=began, end=time.time(), step=1)["result"]
        assert {series["metric"]["run"] for series in found} & {"run", SEARCH}, query
        assert any(value != "NaN" for series in found for _, value in series["values"]), query


def test_series_are_few_and_told_apart_by_run_method_and_term_alone(scraped: tuple[Prometheus, float]) -> None:
    prometheus, began = scraped
    series = prometheus.ask("series", **{"match[]": '{__name__=~"ray_fewstep_.+"}', "start": began})
    names = {metric.in_prometheus: metric for metric in REGISTRY.values()}
    told_apart: dict[str, set[str]] = {}
    for labels in series:
        metric = names[labels["__name__"]]
        own = {name for name in labels if not name.startswith("otel_")} - RAYS_OWN - PROMETHEUS_OWN
        assert own == set(metric.tags)
        told_apart.setdefault(metric.name, set()).add(labels.get("term", ""))
    assert set(told_apart) == set(REGISTRY)
    assert max(len(terms) for terms in told_apart.values()) <= 20
    assert told_apart["loss"] == {"student/consistency"}
