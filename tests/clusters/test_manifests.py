"""What would be applied, against what the other side publishes of its form."""

from __future__ import annotations

import base64
import os
import re
import subprocess
import zipfile
from collections.abc import Iterator, Mapping
from io import BytesIO
from pathlib import Path

import fsspec
import jsonschema
import pytest
import yaml

from fewstep.clusters import ClusterError
from fewstep.clusters.vm import ray_up_schema
from tests.support.jobs import FILES, job, shipped

FIELDS = Path(__file__).with_name("rayjob.yaml")


def documents(name: str, folder: Path, **changes: object) -> list[dict]:
    return list(yaml.safe_load_all(shipped(name, **changes).preview(job(folder))))


@pytest.fixture
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    return tmp_path / "state/fewstep"


@pytest.mark.parametrize("name", ["aws", "gcp"])
def test_ray_up_takes_what_vm_writes_and_starts_ray_with_a_token(name: str, tmp_path: Path, state: Path) -> None:
    config = next(yaml.safe_load_all(shipped(name).preview(job(tmp_path))))
    jsonschema.validate(config, ray_up_schema())
    token = Path(config["file_mounts"]["~/.ray/auth_token"])
    assert token.stat().st_mode & 0o777 == 0o600 and len(token.read_text()) == 64
    starts = [line for key in ("head", "worker") for line in config[f"{key}_start_ray_commands"] if "ray start" in line]
    assert len(starts) == 2 and all(line.startswith("RAY_AUTH_MODE=token ") for line in starts)
    assert "--dashboard-host=127.0.0.1" in starts[0]
    assert token.read_text() not in shipped(name).preview(job(tmp_path))


def test_a_spot_worker_is_asked_for_on_each_cloud(tmp_path: Path, state: Path) -> None:
    types = {name: documents(name, tmp_path)[0]["available_node_types"] for name in ("aws", "gcp")}
    assert types["aws"]["gpu"]["node_config"]["InstanceMarketOptions"] == {"MarketType": "spot"}
    assert {"preemptible": True} in types["gcp"]["gpu"]["node_config"]["scheduling"]


def test_the_rayjob_brings_a_cluster_with_a_token_and_takes_it_away(tmp_path: Path) -> None:
    code, rayjob = documents("kuberay", tmp_path)
    archive = zipfile.ZipFile(BytesIO(base64.b64decode(code["binaryData"]["code.zip"])))
    assert {name: archive.read(name).decode() for name in archive.namelist()} == FILES
    assert (rayjob["apiVersion"], rayjob["kind"]) == ("ray.io/v1", "RayJob")
    assert len(rayjob["metadata"]["name"]) <= 47
    spec, cluster = rayjob["spec"], rayjob["spec"]["rayClusterSpec"]
    assert spec["entrypoint"] == "python -m fewstep.orchestrator.cli.cluster_job /mnt/fewstep run recipe.yaml"
    assert spec["shutdownAfterJobFinishes"] and spec["backoffLimit"] == 0
    assert cluster["authOptions"] == {"mode": "token"}
    (group,) = cluster["workerGroupSpecs"]
    assert (group["minReplicas"], group["maxReplicas"]) == (0, 8)
    assert group["template"]["spec"]["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] == "1"
    assert {"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"} in group["template"]["spec"][
        "tolerations"
    ]


def test_a_secret_reaches_the_pods_by_reference_alone(tmp_path: Path) -> None:
    _, rayjob = documents("kuberay", tmp_path)
    cluster = rayjob["spec"]["rayClusterSpec"]
    for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
        (variable,) = group["template"]["spec"]["containers"][0]["env"]
        reference = {"secretKeyRef": {"name": "huggingface", "key": "token"}}
        assert variable == {"name": "HF_TOKEN", "valueFrom": reference}


def test_what_a_config_map_cannot_hold_goes_through_s3(tmp_path: Path, s3_url: str) -> None:
    big: dict[str, Path | str] = {"weights.safetensors": tmp_path / "weights"}
    (tmp_path / "weights").write_bytes(os.urandom(800 * 1024))
    with pytest.raises(ClusterError, match="upload"):
        shipped("kuberay").preview(job(tmp_path, big))
    (rayjob,) = yaml.safe_load_all(shipped("kuberay", upload=s3_url).preview(job(tmp_path, big)))
    place = yaml.safe_load(rayjob["spec"]["runtimeEnvYAML"])["working_dir"]
    assert place == f"{s3_url}/run-tiny-0.zip"
    assert fsspec.get_fs_token_paths(place)


@pytest.mark.parametrize("upload", ["", "s3://bucket/folder"])
def test_a_rayjob_has_the_fields_that_kuberay_knows(upload: str, tmp_path: Path) -> None:
    schema = strict(yaml.safe_load(FIELDS.read_text()))
    jsonschema.validate(documents("kuberay", tmp_path, upload=upload)[-1], schema)


def test_the_published_schema_of_a_rayjob_takes_ours(tmp_path: Path) -> None:
    """KubeRay's CRD is more than a megabyte of Kubernetes' own types, so it is named here and not shipped."""
    told = os.environ.get("KUBERAY_CRD")
    if not told:
        pytest.skip("KUBERAY_CRD names no ray.io_rayjobs.yaml (KubeRay v1.7.0, ray-operator/config/crd/bases)")
    versions = {each["name"]: each for each in yaml.safe_load(Path(told).read_text())["spec"]["versions"]}
    schema = strict(versions["v1"]["schema"]["openAPIV3Schema"])
    for upload in ("", "s3://bucket/folder"):
        jsonschema.validate(documents("kuberay", tmp_path, upload=upload)[-1], schema)


def strict(schema: Mapping) -> dict:
    """An OpenAPI schema as JSON Schema that refuses what it does not name, as `kubectl apply` does."""
    told = {key: strict(value) if isinstance(value, dict) else value for key, value in schema.items()}
    if told.get("x-kubernetes-int-or-string"):
        told = {"type": ["integer", "string"]}
    if told.get("type") == "object" and isinstance(told.get("properties"), dict):
        if "apiVersion" not in told["properties"] and not told.get("x-kubernetes-preserve-unknown-fields"):
            told.setdefault("additionalProperties", False)
    return told


def test_the_batch_script_says_what_slurm_reads(tmp_path: Path) -> None:
    script = shipped("slurm").preview(job(tmp_path))
    told = directives(script)
    assert told["job-name"] == "run-tiny-0" and told["nodes"] == "2" and told["gpus-per-node"] == "4"
    assert "exclusive" in told  # `ray symmetric-run` ends with a stop of all Ray on the node
    assert told["export"] == "PATH,HOME,USER,LANG,HF_TOKEN"
    assert "account" not in told
    assert "export RAY_AUTH_MODE=token" in script
    assert re.search(r"ray symmetric-run --address .* -- ", script.replace("\\\n", ""))


@pytest.mark.parametrize("changes", [{}, {"nodes": 1, "environment": "/venv", "secrets": [], "env_vars": {}}])
def test_bash_can_read_the_batch_script(tmp_path: Path, changes: dict[str, object]) -> None:
    script = shipped("slurm", **changes).preview(job(tmp_path))
    subprocess.run(["bash", "-n"], input=script, text=True, check=True)


def directives(script: str) -> dict[str, str]:
    """As sbatch reads them: up to the first line that is neither a comment nor empty."""

    def lines() -> Iterator[tuple[str, str]]:
        for line in script.splitlines():
            if line and not line.startswith("#"):
                return
            if line.startswith("#SBATCH "):
                name, _, value = line.removeprefix("#SBATCH --").partition("=")
                yield name, value

    return dict(lines())
