"""Verbs on a Ray cluster of this machine, and what is refused before anything is sent."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from inspect import signature
from pathlib import Path

import pytest
import yaml
from typer.testing import Result

from fewstep.clusters.jobs_api import ANSWERS_S
from fewstep.orchestrator.cli.jobs import VERBS, WITHOUT_TRAINING
from fewstep.orchestrator.cli.main import app
from fewstep.orchestrator.recipe.parsing import load
from fewstep.orchestrator.submission.bundle import make_bundle
from fewstep.orchestrator.submission.job_records import Record, cluster_of
from tests.support import tiny
from tests.support.command import facts, fewstep, refused
from tests.support.ports import free_port


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A tiny recipe, a local cluster's file with a free port, and a state folder of its own."""
    folder = tmp_path_factory.mktemp("submit")
    data = tiny.recipe_data(folder) | {"output": "out"}
    (folder / "tiny.yaml").write_text(yaml.safe_dump(data))
    told = {"kind": "local", "port": free_port(), "num_cpus": 1, "outputs": str(folder), "temp_dir": str(folder / "r")}
    (folder / "local.yaml").write_text(yaml.safe_dump(told))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_STATE_HOME", str(folder / "state"))
        yield folder


def known(place: Path, id: str, digest: str, status: str) -> None:
    """A job that was submitted from here before."""
    cluster = cluster_of(yaml.safe_load((place / "local.yaml").read_text()), "local.yaml").model_dump(mode="json")
    Record(id, "run", "tiny", digest, cluster, str(place / "out"), "2026-01-01", status=status).write()


def asked(place: Path, *more: str) -> tuple[str | Path, ...]:
    return ("submit", "run", place / "tiny.yaml", *more, "--cluster", place / "local.yaml")


def test_an_id_that_another_recipe_has_is_refused(place: Path) -> None:
    _, digest = make_bundle(load(str(place / "tiny.yaml")), "run", str(place))
    known(place, "taken", digest, "SUCCEEDED")
    refused(fewstep(*asked(place, "training.steps=9"), "--id", "taken"), "--id", "'taken'", "another recipe")
    refused(fewstep(*asked(place), "--id", "Not_A_Name"), "--id", "lower-case")


def test_a_job_that_succeeded_is_not_done_again(place: Path) -> None:
    _, digest = make_bundle(load(str(place / "tiny.yaml")), "run", str(place))
    known(place, "done", digest, "SUCCEEDED")
    again = facts(*asked(place), "--id", "done")
    assert (again["status"], again["submitted"]) == ("SUCCEEDED", "2026-01-01")
    assert not list((place / "state/fewstep").glob("local-*.pid"))
    assert "done" in [job["id"] for job in facts("jobs", "list")["jobs"]]


def test_a_dry_run_prints_the_request_and_keeps_nothing(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(place / "other"))
    head, _, request = fewstep(*asked(place), "--dry-run").stdout.partition("\n")
    assert head.startswith("RAY_AUTH_MODE=token ") and "--dashboard-host=127.0.0.1" in head
    assert json.loads(request)["entrypoint"].endswith(
        f"-m fewstep.orchestrator.cli.cluster_job {place} run recipe.yaml"
    )
    assert json.loads(request)["submission_id"].startswith("run-tiny-")
    assert not (place / "other/fewstep/jobs").exists()


def submitted(place: Path, tmp_path: Path, verb: str = "run", **cluster: object) -> Result:
    (tmp_path / "cluster.yaml").write_text(yaml.safe_dump(cluster))
    return fewstep("submit", verb, place / "tiny.yaml", "--cluster", tmp_path / "cluster.yaml", "--no-follow")


def ray_at(port: int) -> dict[str, object]:
    return {"kind": "ray", "address": f"http://127.0.0.1:{port}", "token_file": "", "outputs": "/mnt/fewstep"}


def test_an_address_where_nothing_listens_is_said_at_once(place: Path, tmp_path: Path) -> None:
    refused(submitted(place, tmp_path, **ray_at(free_port())), "address", "no Ray dashboard answers", "8265")


def test_an_address_that_never_answers_is_given_up_within_ten_seconds(place: Path, tmp_path: Path) -> None:
    assert 2 * ANSWERS_S < 10
    with socket.create_server(("127.0.0.1", 0)) as silent:
        refused(submitted(place, tmp_path, **ray_at(silent.getsockname()[1])), "no Ray dashboard answers")


def test_a_port_that_somebody_has_is_not_taken_for_our_cluster(place: Path, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        refused(submitted(place, tmp_path, kind="local", port=port, outputs=str(place)), "port", f"{port} is not free")


def test_a_token_file_that_is_missing_is_named(place: Path, tmp_path: Path) -> None:
    told = ray_at(8265) | {"token_file": str(tmp_path / "token")}
    refused(submitted(place, tmp_path, **told), "token_file", str(tmp_path / "token"))


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"adress": "x"}, ["adress is not a known key", "did you mean 'address'"]),
        ({"kind": "kubray"}, ["kind 'kubray' is not one of", "did you mean 'kuberay'"]),
        ({"env_vars": {"HF_TOKEN": "hf_canary"}}, ["env_vars", "HF_TOKEN looks like a secret"]),
        ({"outputs": "outputs"}, ["outputs", "absolute folder"]),
    ],
)
def test_a_wrong_cluster_file_is_refused(
    place: Path, tmp_path: Path, changes: dict[str, object], says: list[str]
) -> None:
    result = submitted(place, tmp_path, **ray_at(8265) | changes)
    refused(result, *says)
    assert "hf_canary" not in result.output


def test_a_cluster_that_is_not_there_is_met_with_those_that_are(place: Path) -> None:
    refused(fewstep("submit", "run", place / "tiny.yaml", "--cluster", "kubray"), "'kubray'", "did you mean 'kuberay'")


def test_only_what_takes_a_recipe_can_be_submitted(place: Path) -> None:
    refused(fewstep("submit", "verify", place / "tiny.yaml", "--cluster", "local"), "'verify' cannot be submitted")


def test_the_verbs_that_can_be_submitted_are_all_that_need_a_recipe_alone() -> None:
    needs = {
        call.__name__: [p.name for p in signature(call).parameters.values() if p.default is p.empty]
        for command in app.registered_commands
        if (call := command.callback)
    }
    assert set(VERBS) == {name for name, parameters in needs.items() if parameters == ["recipe"]}
    assert set(WITHOUT_TRAINING) < set(VERBS)


def test_without_kubectl_the_manifest_is_written_and_named(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    on_kubernetes = ("submit", "run", place / "tiny.yaml", "--cluster", "kuberay", "--id", "k")
    refused(fewstep(*on_kubernetes), "kubectl is not on PATH", "kubectl apply --filename")
    documents = yaml.safe_load_all((place / "state/fewstep/jobs/k/k.yaml").read_text())
    assert [document["kind"] for document in documents] == ["ConfigMap", "RayJob"]


def test_without_sbatch_it_says_where_to_run(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    refused(fewstep("submit", "run", place / "tiny.yaml", "--cluster", "slurm"), "sbatch is not on PATH", "login node")


def test_a_job_that_was_not_submitted_from_here_is_unknown(place: Path) -> None:
    refused(fewstep("jobs", "status", "nobody"), "no job 'nobody'", "fewstep jobs list")
