"""kubectl and SLURM's commands, of which stand-ins note what they were asked and say what they were told to."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from fewstep.clusters import JobState
from tests.support.jobs import FILES, job, shipped

StandIn = Callable[[str, str], None]


@pytest.fixture
def asked(tmp_path: Path) -> Path:
    """What the programs were asked, a line each."""
    return tmp_path / "asked"


@pytest.fixture
def stand_in(tmp_path: Path, asked: Path, monkeypatch: pytest.MonkeyPatch) -> StandIn:
    """Put a program on PATH that prints this."""
    programs = tmp_path / "bin"
    programs.mkdir()
    monkeypatch.setenv("PATH", f"{programs}:/usr/bin:/bin")

    def make(name: str, says: str = "") -> None:
        (programs / f"{name}.said").write_text(says)
        (programs / name).write_text(f'#!/bin/sh\necho {name} "$@" >> {asked}\ncat {programs / name}.said\n')
        (programs / name).chmod(0o755)

    return make


@pytest.mark.parametrize(
    ("said", "status"),
    [
        ("PENDING", "PENDING"),
        ("RUNNING", "RUNNING"),
        ("COMPLETED", "SUCCEEDED"),
        ("CANCELLED by 1000", "STOPPED"),
        ("TIMEOUT", "FAILED"),
        ("NODE_FAIL", "FAILED"),
        ("FAILED\nRUNNING", "RUNNING"),
    ],
)
def test_slurm_says_what_became_of_the_newest_job_of_a_name(
    said: str, status: str, tmp_path: Path, stand_in: StandIn
) -> None:
    stand_in("sacct", f"{said}\n")
    slurm = shipped("slurm", folder=str(tmp_path))
    (tmp_path / "run-tiny-0").mkdir()
    (tmp_path / "run-tiny-0/digest").write_text("d1")
    assert slurm.find(job(tmp_path)) == JobState(status, "d1")  # type: ignore[arg-type]
    stand_in("sacct", "")
    assert slurm.find(job(tmp_path)) is None


def test_slurm_is_given_the_script_beside_the_code(tmp_path: Path, stand_in: StandIn, asked: Path) -> None:
    for name in ("sbatch", "scancel", "sacct"):
        stand_in(name, "")
    slurm, place = shipped("slurm", folder=str(tmp_path)), tmp_path / "run-tiny-0"
    slurm.prepare(job(tmp_path))
    slurm.submit(job(tmp_path))
    slurm.stop(job(tmp_path))
    assert asked.read_text().splitlines() == [f"sbatch {place / 'job.sh'}", "scancel --name=run-tiny-0"]
    assert {file.name: file.read_text() for file in (place / "code").iterdir()} == FILES
    assert (place / "digest").read_text() == "d1" and (place / "job.sh").read_text() == slurm.preview(job(tmp_path))
    (place / "log.txt").write_text("step 1\n")
    assert "".join(slurm.logs(job(tmp_path), follow=True)) == "step 1\n"


@pytest.mark.parametrize(
    ("told", "status"),
    [
        ({}, "PENDING"),
        ({"jobDeploymentStatus": "Initializing"}, "PENDING"),
        ({"jobDeploymentStatus": "Running", "jobStatus": "RUNNING"}, "RUNNING"),
        ({"jobDeploymentStatus": "Complete", "jobStatus": "SUCCEEDED"}, "SUCCEEDED"),
        ({"jobDeploymentStatus": "Failed", "jobStatus": "FAILED"}, "FAILED"),
        ({"jobDeploymentStatus": "Failed", "reason": "DeadlineExceeded"}, "FAILED"),
        ({"jobDeploymentStatus": "Suspended"}, "STOPPED"),
    ],
)
def test_kubectl_says_what_became_of_a_rayjob(
    told: dict[str, str], status: str, tmp_path: Path, stand_in: StandIn
) -> None:
    known = {"metadata": {"annotations": {"fewstep/digest": "d1"}}, "status": told}
    stand_in("kubectl", json.dumps(known))
    assert shipped("kuberay").find(job(tmp_path)) == JobState(status, "d1")  # type: ignore[arg-type]
    stand_in("kubectl", "")
    assert shipped("kuberay").find(job(tmp_path)) is None


def test_kubectl_is_given_the_manifest_and_suspends_what_is_stopped(
    tmp_path: Path, stand_in: StandIn, asked: Path
) -> None:
    stand_in("kubectl", "")
    kuberay, manifest = shipped("kuberay"), tmp_path / "run-tiny-0.yaml"
    kuberay.submit(job(tmp_path))
    kuberay.stop(job(tmp_path))
    assert manifest.read_text() == kuberay.preview(job(tmp_path))
    assert asked.read_text().splitlines() == [
        f"kubectl --namespace=fewstep apply --filename {manifest}",
        'kubectl --namespace=fewstep patch rayjob run-tiny-0 --type=merge --patch {"spec": {"suspend": true}}',
    ]
