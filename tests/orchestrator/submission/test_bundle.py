"""What a job takes along, and above all what it leaves."""

from __future__ import annotations

import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import yaml

from fewstep.orchestrator.cli.cluster_job import unpack
from fewstep.orchestrator.errors import BadInput
from fewstep.orchestrator.recipe.parsing import load
from fewstep.orchestrator.recipe.recipe import Recipe
from fewstep.orchestrator.submission import bundle as parcels
from fewstep.orchestrator.submission.bundle import make_bundle, pins

CANARIES = (
    ".env",
    ".git/config",
    ".netrc",
    "outputs/run.json",
    "weights.pt",
    "notes.ipynb",
    ".cache/model.safetensors",
)


def plant(folder: Path) -> None:
    for name in CANARIES:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("canary")


@pytest.fixture
def recipe(recipe_data: dict[str, object], tmp_path: Path) -> Recipe:
    """A recipe beside whose inputs lies what must stay here."""
    told = dict(recipe_data)
    teacher, prompts = tmp_path / "teacher", tmp_path / "prompts"
    shutil.copytree(str(told["teacher"]["folder"]), teacher)  # type: ignore[index]
    prompts.mkdir()
    (prompts / "prompts.parquet").write_text("rows")
    for folder in (tmp_path, teacher, teacher / "unet", prompts):
        plant(folder)
    (prompts / "outputs/run.json").unlink()  # data like any other, in a folder that was named
    (teacher / "unet/outputs/run.json").unlink()
    trajectories = told["trajectories"] | {"prompts": str(prompts)}  # type: ignore[operator]
    told |= {"teacher": {"folder": str(teacher)}, "trajectories": trajectories, "output": "out"}
    file = tmp_path / "tiny.yaml"
    file.write_text(yaml.safe_dump(told))
    return load(str(file))


def test_code_inputs_and_versions_travel_and_nothing_else(
    recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = tmp_path / "home"
    for package in parcels.CODE:
        (home / package).mkdir(parents=True)
        (home / package / "module.py").write_text("code")
        plant(home / package)
    plant(home)
    monkeypatch.setattr(parcels, "HOME", home)
    bundle, _ = make_bundle(recipe, "run", "/mnt/fewstep")
    bundle.write(tmp_path / "written")
    written = [file for file in (tmp_path / "written").rglob("*") if file.is_file()]
    assert not [file for file in written if file.read_bytes() == b"canary"]
    tops = {file.relative_to(tmp_path / "written").parts[0] for file in written}
    (metadata,) = (name for name in tops if name.endswith(".dist-info"))
    assert tops == {"fewstep", "inputs", "recipe.yaml", "constraints.txt", metadata}
    assert {folder.name for folder in (tmp_path / "written/fewstep").iterdir()} == {*parcels.CODE}


def test_a_job_knows_our_version_where_a_wheel_was_built_in_the_checkout(
    recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "fewstep.egg-info").mkdir()
    (tmp_path / "fewstep.egg-info/PKG-INFO").write_text("Name: fewstep\nVersion: 9.8\n")
    monkeypatch.syspath_prepend(tmp_path)
    bundle, _ = make_bundle(recipe, "run", "/mnt/fewstep")
    assert "Version: 9.8" in str(bundle.files["fewstep-9.8.dist-info/METADATA"])


def test_every_node_finds_the_inputs_under_the_outputs(
    recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    outputs = tmp_path / "shared"
    written, shared = tmp_path / "written", outputs / ".fewstep"
    make_bundle(recipe, "run", str(outputs))[0].write(written)
    unpack(written / "inputs", shared)
    stamps = {file: file.stat().st_mtime_ns for file in shared.rglob("*")}
    unpack(written / "inputs", shared)
    assert {file: file.stat().st_mtime_ns for file in shared.rglob("*")} == stamps

    monkeypatch.chdir(tmp_path)
    shutil.rmtree(written / "inputs")
    there = load(str(written / "recipe.yaml"))
    assert there.output == str(outputs / "out") and there.resources.address == "auto"
    assert Path(there.teacher.folder).parent == shared
    assert Path(there.evaluation.prompts).read_bytes() == Path(recipe.evaluation.prompts).read_bytes()
    assert there.training == recipe.training and there.method == recipe.method


def test_an_input_that_other_work_put_there_meanwhile_is_taken(tmp_path: Path) -> None:
    (tmp_path / "inputs/teacher").mkdir(parents=True)
    (tmp_path / "inputs/teacher/model_index.json").write_text("{}")
    (tmp_path / "inputs/prompts.txt").write_text("a cat")
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda _: unpack(tmp_path / "inputs", tmp_path / "place"), range(32)))
    assert sorted(file.name for file in (tmp_path / "place").iterdir()) == ["prompts.txt", "teacher"]


def test_what_is_under_the_outputs_stays_and_counts_all_the_same(recipe: Recipe, tmp_path: Path) -> None:
    bundle, digest = make_bundle(recipe, "run", str(tmp_path))
    assert yaml.safe_load(str(bundle.files["recipe.yaml"]))["teacher"]["folder"] == recipe.teacher.folder
    assert not [name for name in bundle.files if "teacher.folder" in name]
    (Path(recipe.teacher.folder) / "scheduler/scheduler_config.json").write_text("{}")
    assert make_bundle(recipe, "run", str(tmp_path))[1] != digest


def test_an_input_that_has_an_address_is_read_from_there(recipe: Recipe) -> None:
    url = "s3://bucket/data"
    other = recipe.model_copy(update={"data": recipe.data.model_copy(update={"imported": url})})
    bundle, _ = make_bundle(other, "run", "/mnt/fewstep")
    assert yaml.safe_load(str(bundle.files["recipe.yaml"]))["data"]["imported"] == url


def test_the_digest_is_of_what_is_asked_wherever_it_lies(recipe: Recipe, tmp_path: Path) -> None:
    _, digest = make_bundle(recipe, "run", "/mnt/fewstep")
    shutil.copytree(recipe.teacher.folder, tmp_path / "moved")
    moved = recipe.model_copy(update={"teacher": recipe.teacher.at(tmp_path / "moved")})
    assert make_bundle(moved, "run", "/mnt/fewstep")[1] == digest
    assert make_bundle(recipe, "train", "/mnt/fewstep")[1] != digest
    (Path(recipe.trajectories.prompts) / "prompts.parquet").write_text("other rows")
    assert make_bundle(recipe, "run", "/mnt/fewstep")[1] != digest


def test_a_feature_network_on_this_machine_is_refused(recipe: Recipe, tmp_path: Path) -> None:
    judged = recipe.evaluation.model_copy(update={"features": f"clip:{tmp_path}"})
    with pytest.raises(BadInput, match="evaluation.features"):
        make_bundle(recipe.model_copy(update={"evaluation": judged}), "run", "/mnt/fewstep")


def test_the_versions_are_those_that_run_here() -> None:
    import ray
    import torch

    versions = dict(pin.split("==") for pin in pins())
    assert versions["ray"] == ray.__version__
    assert versions["torch"] == torch.__version__.split("+")[0]
    assert "pytest" not in versions and "numpy" in versions
