"""Packs what a job takes to another machine: our packages, the recipe, its input files, the versions; nothing else."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import yaml
from packaging.requirements import Requirement

import fewstep
from fewstep.clusters.bundle import Bundle
from fewstep.orchestrator.errors import BadInput
from fewstep.orchestrator.files import file_hash
from fewstep.orchestrator.recipe.parsing import relocate
from fewstep.orchestrator.recipe.recipe import Recipe
from fewstep.orchestrator.submission.layout import INPUTS, RECIPE, inputs_folder

HOME = Path(fewstep.__file__).parent
CODE = ("methods", "orchestrator", "clusters", "dashboards")
CODE_SUFFIXES = (".py", ".css")
DATA_SUFFIXES = (
    *(".json", ".jsonl", ".txt", ".csv", ".parquet", ".arrow", ".safetensors", ".model", ".npz"),
    *(".png", ".jpg", ".jpeg", ".webp", ".bmp"),
)


def make_bundle(recipe: Recipe, verb: str, outputs: str) -> tuple[Bundle, str]:
    """The bundle of a job, and the digest of what is asked: verb, recipe and inputs.

    The recipe in it reads its inputs where `cli.cluster_job` puts them, which every node sees, and writes under
    `outputs`. An input that is under `outputs` here is there already and does not travel. Raises BadInput for one that
    cannot travel.
    """
    files: dict[str, Path | str] = {}
    hashes: dict[str, str] = {}

    def take(field: str, path: str) -> str:
        """Under a name made of the field and what is in it: the same wherever this machine keeps it."""
        source = Path(path)
        if "://" in path:
            return path
        if field == "evaluation.baselines" and (verb == "teacher" or not source.exists()):
            return ""  # written by this job, and so with its outputs
        inputs = _input_files(field, source)
        hashes[field] = _hash({name: file_hash(file) for name, file in inputs.items()})
        if source.is_relative_to(outputs):
            return path
        name = f"{field}-{hashes[field][:12]}" + (source.suffix if source.is_file() else "")
        files.update({(Path(INPUTS) / name / inner).as_posix(): file for inner, file in inputs.items()})
        return str(inputs_folder(outputs) / name)

    moved = relocate(recipe, take)
    for section in ("training", "evaluation"):
        _check_features(section, getattr(recipe, section).features)
    there = moved.model_copy(
        update={
            "output": _under(outputs, recipe.output),
            "trajectories": moved.trajectories.model_copy(update={"store": _under(outputs, recipe.trajectories.store)}),
            "resources": moved.resources.model_copy(update={"address": "auto"}),
        }
    )
    text = yaml.safe_dump(there.model_dump(mode="json", exclude_unset=True), sort_keys=False)
    digest = _hash({"verb": verb, RECIPE: there.resolved(), INPUTS: hashes})
    return Bundle(
        {**source_files(), **_metadata(), **files, RECIPE: text, "constraints.txt": "\n".join(pins()) + "\n"}
    ), digest


@cache
def pins() -> tuple[str, ...]:
    """The packages that fewstep needs and the versions that are installed here, as name==version."""
    pinned: dict[str, str] = {}
    queue = [need for extra in ("", "evaluation", "lpips") for need in _needs("fewstep", extra)]
    while queue:
        name, extra = queue.pop()
        try:
            version = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue  # an extra's, left out here
        key = f"{name}[{extra}]"
        if key not in pinned:
            pinned[key] = f"{name}=={version.split('+')[0]}"  # +cpu is how it was built, and not for every machine
            queue += _needs(name, extra)
    return tuple(sorted(set(pinned.values())))


def _needs(package: str, extra: str) -> Iterator[tuple[str, str]]:
    """The requirements of an installed package with an extra ("" for none): (name, extra of that)."""
    for line in importlib.metadata.requires(package) or ():
        need = Requirement(line)
        if need.marker is None or need.marker.evaluate({"extra": extra}):
            yield need.name.lower(), ""
            yield from ((need.name.lower(), name) for name in need.extras)


def source_files() -> dict[str, Path]:
    """Our packages' source by its place in a bundle, which is that in a wheel."""
    files = [*HOME.glob("*"), *(file for package in CODE for file in (HOME / package).rglob("*"))]
    return {
        (Path("fewstep") / file.relative_to(HOME)).as_posix(): file
        for file in sorted(files)
        if file.suffix in CODE_SUFFIXES and file.is_file()
    }


def _metadata() -> dict[str, str]:
    """The metadata by which fewstep knows its own version."""
    us = importlib.metadata.distribution("fewstep")
    # A wheel brings METADATA; a checkout where it was built has PKG-INFO, and may come first on the path.
    text = us.read_text("METADATA") or us.read_text("PKG-INFO")
    assert text, us
    return {f"fewstep-{us.version}.dist-info/METADATA": text}


def _input_files(field: str, source: Path) -> dict[str, Path]:
    """What travels of an input, by its name inside; a file's is ""."""
    if source.is_file():
        return {"": source}
    names = _pipeline_files(source) if field == "teacher.folder" else _data_files(source)
    return {name: source / name for name in names}


def _pipeline_files(folder: Path) -> Iterator[str]:
    """model_index.json, the components that it names, and the pipeline's own code where there is some."""
    yield "model_index.json"
    if (folder / "pipeline.py").is_file():
        yield "pipeline.py"
    for component in json.loads((folder / "model_index.json").read_text()):
        if not component.startswith("_") and (folder / component).is_dir():
            yield from (f"{component}/{name}" for name in _data_files(folder / component))


def _data_files(folder: Path) -> Iterator[str]:
    """Files of data under a folder; none that is hidden, and none in a hidden folder."""
    for file in sorted(folder.rglob("*")):
        name = file.relative_to(folder)
        if file.suffix in DATA_SUFFIXES and file.is_file() and not any(folder.startswith(".") for folder in name.parts):
            yield name.as_posix()


def _hash(facts: object) -> str:
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def _under(outputs: str, path: str) -> str:
    """A path where the job runs: "", absolute ones and URLs as they are."""
    return path if not path or "://" in path else str(Path(outputs) / path)


def _check_features(section: str, name: str) -> None:
    path = name.partition(":")[2]
    if path and Path(path).is_dir():
        raise BadInput(f"{section}.features: {path} is a folder of this machine and does not travel; give a hub id")
