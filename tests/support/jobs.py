"""A job as a cluster is given it, without a recipe behind it."""

from __future__ import annotations

from pathlib import Path

import yaml

from fewstep.clusters import CLUSTERS, KINDS, Cluster, Job
from fewstep.clusters.bundle import Bundle

FILES = {"recipe.yaml": "output: x\n", "constraints.txt": "ray==2.60.0\n"}


def job(folder: Path, files: dict[str, Path | str] | None = None) -> Job:
    """`fewstep run recipe.yaml`."""
    return Job(
        "run-tiny-0",
        "d1",
        folder,
        ("/mnt/fewstep", "run", "recipe.yaml"),
        Bundle(files or dict(FILES)),
        ("ray==2.60.0",),
    )


def shipped(name: str, **changes: object) -> Cluster:
    """A cluster file that comes with fewstep, with other values."""
    data = yaml.safe_load((CLUSTERS / f"{name}.yaml").read_text()) | changes
    return KINDS[data["kind"]].model_validate(data)
