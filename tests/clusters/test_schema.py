"""The cluster files that come with fewstep, and those that are refused."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import ValidationError

from fewstep.clusters import CLUSTERS
from fewstep.clusters.bundle import Bundle
from tests.support.jobs import shipped

NAMES = sorted(file.stem for file in CLUSTERS.glob("*.yaml"))


@pytest.mark.parametrize("name", NAMES)
def test_every_shipped_file_is_as_its_schema_has_it(name: str) -> None:
    assert shipped(name).outputs.startswith("/")


def test_there_is_a_file_for_each_kind() -> None:
    assert {"aws", "gcp", "kuberay", "local", "ray", "slurm"} == set(NAMES)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    "variables",
    [
        {"HF_TOKEN": "x"},
        {"WANDB_API_KEY": "x"},
        {"MY_APIKEY": "x"},
        {"AWS_ACCESS_KEY_ID": "x"},
        {"MY_SECRET_PLACE": "x"},
        {"MLFLOW_TRACKING_URI": "https://me:password@host"},
    ],
)
def test_a_secret_among_the_variables_is_refused(name: str, variables: dict[str, str]) -> None:
    with pytest.raises(ValidationError, match="secret"):
        shipped(name, env_vars=variables)


def test_a_variable_that_only_sounds_like_a_secret_is_taken() -> None:
    assert shipped("ray", env_vars={"TOKENIZERS_PARALLELISM": "false"})


@pytest.mark.parametrize(
    ("name", "changes", "says"),
    [
        ("ray", {"address": "127.0.0.1:8265"}, "like http://127.0.0.1:8265"),
        ("ray", {"address": "https://me:canary@host:8265"}, "a name or a password"),
        ("ray", {"outputs": "outputs"}, "absolute folder"),
        ("slurm", {"folder": "/shared/my folder; rm"}, "nothing that a shell reads"),
        ("slurm", {"secrets": ["HF_TOKEN=hf_canary"]}, "not its value"),
        (
            "kuberay",
            {"workers": [{"name": "gpu", "cpus": 1, "memory": "1Gi", "min": 3, "max": 2}]},
            "min=3 above max=2",
        ),
        ("aws", {"ray_up": {"cluster_name": "x"}}, "'provider' is a required property"),
        ("aws", {"ray_up": {"cluster_name": "x", "provider": {"type": "aws"}, "nodes": 3}}, "'nodes' was unexpected"),
        ("aws", {"ray_up": {"head_start_ray_commands": ["ray start --head"]}}, "token authentication"),
    ],
)
def test_what_a_kind_cannot_use_is_refused(name: str, changes: dict[str, object], says: str) -> None:
    with pytest.raises(ValidationError, match=says):
        shipped(name, **changes)


def test_the_same_files_make_the_same_archive(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("a")
    files = {"a.txt": tmp_path / "a.txt", "b/c.txt": "c"}
    first = Bundle(files).archive()
    (tmp_path / "a.txt").touch()
    assert Bundle(dict(reversed(files.items()))).archive() == first
