"""Whole jobs on real clusters: a local head, two nodes, and SLURM's script on one."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import ray
import requests
import yaml
from ray._private.authentication.authentication_token_setup import ensure_token_if_auth_enabled
from ray._raylet import AuthenticationTokenLoader, Config
from ray.cluster_utils import Cluster

from fewstep.clusters import ClusterError
from fewstep.clusters.jobs_api import connect
from fewstep.orchestrator.cli.app import DONE
from fewstep.orchestrator.recipe.parsing import load
from fewstep.orchestrator.submission.bundle import make_bundle
from tests.support import tiny
from tests.support.command import facts, fewstep, refused
from tests.support.jobs import job, shipped
from tests.support.ports import free_port

pytestmark = pytest.mark.slow

# A place for processes, and for Ray's files, where the stop at the end of `ray symmetric-run` finds nobody else's.
ALONE = ["unshare", "-pf", "--mount-proc", "bash", "-c", 'mkdir -p /tmp/ray && mount -t tmpfs tmpfs /tmp/ray && "$@"']


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A tiny recipe and a state folder of its own."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(tiny.recipe_data(tmp_path) | {"output": "out"}))
    return tmp_path


def cluster_file(place: Path, **told: object) -> Path:
    file = place / "cluster.yaml"
    file.write_text(yaml.safe_dump({"outputs": str(place / "shared")} | told))
    return file


@pytest.fixture
def local(place: Path) -> Iterator[Path]:
    """The file of a cluster of this machine."""
    with tempfile.TemporaryDirectory() as short:  # sockets lie under it
        yield cluster_file(place, kind="local", port=free_port(), num_cpus=2, temp_dir=short)


def test_a_local_cluster_does_the_whole_job_once_and_ends(place: Path, local: Path) -> None:
    asked = ("submit", "run", place / "tiny.yaml", "--cluster", local)
    given = facts(*asked, "--id", "whole", "--no-follow")
    (pid_file,) = (place / "state/fewstep").glob("local-*.pid")
    head = psutil.Process(int(pid_file.read_text().split()[0]))
    port = yaml.safe_load(local.read_text())["port"]
    assert requests.get(f"http://127.0.0.1:{port}/api/jobs/", timeout=10).status_code == 401

    refused(fewstep(*asked, "training.steps=9", "--id", "whole"), "--id", "'whole'", "another recipe")
    followed = fewstep(*asked, "--id", "whole", "--json")
    assert followed.exit_code == DONE and "is there already" in followed.stderr
    ended = json.loads(followed.stdout)
    assert ended["status"] == "SUCCEEDED" and ended["submitted"] == given["submitted"]
    assert ended["report"] == str(place / "shared/out/report.html")
    assert (place / "shared/out/student/model_index.json").exists()
    assert not psutil.pid_exists(head.pid) or head.status() == psutil.STATUS_ZOMBIE

    assert facts("jobs", "status", "whole")["status"] == "SUCCEEDED"
    assert "done:" in fewstep("jobs", "logs", "whole").stderr
    assert facts("jobs", "stop", "whole")["status"] == "SUCCEEDED"


def test_a_job_that_was_stopped_goes_on_where_it_was_left(place: Path, local: Path) -> None:
    asked = ("submit", "run", place / "tiny.yaml", "--cluster", local, "--id", "again")
    facts(*asked, "--no-follow")
    ends = time.monotonic() + 300
    while not (made := sorted((place / "shared/out").rglob("commits/*.json"))) and time.monotonic() < ends:
        time.sleep(0.5)
    assert facts("jobs", "stop", "again")["status"] == "STOPPED"
    written = {file: file.stat().st_mtime_ns for file in made}
    assert written and facts(*asked)["status"] == "SUCCEEDED"
    assert {file: file.stat().st_mtime_ns for file in made} == written


def test_jobs_that_are_submitted_at_once_share_a_cluster(place: Path, local: Path) -> None:
    command = [sys.executable, "-m", "fewstep", "submit", "plan", place / "tiny.yaml", "--cluster", local]
    ids = ("one", "one", "other")
    submits = [subprocess.Popen([*command, "--id", id, "--no-follow"]) for id in ids]
    assert [submit.wait(240) for submit in submits] == [0, 0, 0]
    assert {job["id"] for job in facts("jobs", "list")["jobs"]} == {"one", "other"}
    assert len(list((place / "state/fewstep").glob("local-*.pid"))) == 1
    for id in set(ids):
        assert facts("submit", "plan", place / "tiny.yaml", "--cluster", local, "--id", id)["status"] == "SUCCEEDED"
    assert not list((place / "state/fewstep").glob("local-*.pid"))


def head(port: int) -> dict[str, object]:
    """Of a cluster in this process, with its dashboard on a port."""
    dashboard = {"include_dashboard": True, "dashboard_port": port, "dashboard_host": "127.0.0.1"}
    return {"num_cpus": 0, "dashboard_agent_listen_port": 0, **dashboard}


@pytest.fixture
def open_head(monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    """A head that asks nobody for a token: the port of its dashboard."""
    ray.shutdown()
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    Config.initialize("")
    port = free_port()
    cluster = Cluster(initialize_head=True, head_node_args=head(port))
    yield port
    cluster.shutdown()
    monkeypatch.undo()
    Config.initialize("")


def test_a_dashboard_that_others_can_reach_and_that_asks_for_no_token_is_refused(open_head: int) -> None:
    with pytest.raises(ClusterError, match="asks for no token"):
        connect(f"http://0.0.0.0:{open_head}", "")
    assert connect(f"http://0.0.0.0:{open_head}", "", allow_unauthenticated=True).list_jobs() == []
    assert connect(f"http://127.0.0.1:{open_head}", "").list_jobs() == []


@pytest.fixture
def nodes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, object]]:
    """A head that computes nothing and two nodes of one CPU: the file of the cluster."""
    ray.shutdown()
    port, token = free_port(), tmp_path / "token"
    token.write_text("0123456789abcdef" * 4)
    monkeypatch.setenv("PATH", f"{sys.prefix}/bin:{os.environ['PATH']}")  # where the nodes find python
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(token))
    Config.initialize("")
    AuthenticationTokenLoader.instance().reset_cache()
    ensure_token_if_auth_enabled()
    cluster = Cluster(initialize_head=True, head_node_args=head(port))
    for _ in range(2):
        cluster.add_node(num_cpus=1)
    yield {"kind": "ray", "address": f"http://127.0.0.1:{port}", "token_file": str(token), "install": False}
    cluster.shutdown()
    monkeypatch.undo()
    Config.initialize("")
    AuthenticationTokenLoader.instance().reset_cache()


def test_two_nodes_train_together(place: Path, nodes: dict[str, object]) -> None:
    sizes = ("resources.workers=2", "resources.generators=2")
    done = facts("submit", "train", place / "tiny.yaml", *sizes, "--cluster", cluster_file(place, **nodes))
    assert done["status"] == "SUCCEEDED"
    assert list((place / "shared/out/rounds").glob("*/result/student.safetensors"))


def test_the_script_for_slurm_does_the_job_on_one_node(place: Path) -> None:
    if subprocess.run([*ALONE, "-", "true"], capture_output=True, check=False).returncode:
        pytest.skip("no PID namespace of our own is to be had, and the script stops every Ray that it can see")
    changes = {"environment": sys.prefix, "port": free_port(), "env_vars": {}, "secrets": []}
    slurm = shipped("slurm", folder=str(place), outputs=str(place / "shared"), nodes=1, **changes)
    bundle, _ = make_bundle(load(str(place / "tiny.yaml")), "run", slurm.outputs)
    asked = dataclasses.replace(job(place, dict(bundle.files)), arguments=(slurm.outputs, "run", "recipe.yaml"))
    bundle.write(place / asked.id / "code")
    script = place / "job.sh"
    script.write_text(slurm.preview(asked))
    subprocess.run([*ALONE, "-", "bash", str(script)], check=True)
    assert (place / "shared/out/report.html").exists()
    assert json.loads((place / "shared/out/evaluation/metrics.json").read_text())
    assert (place / asked.id / "token").stat().st_mode & 0o777 == 0o600
