"""Names what a bundle holds, and where its inputs lie on a cluster."""

from __future__ import annotations

from pathlib import Path

RECIPE = "recipe.yaml"
INPUTS = "inputs"  # of a bundle; what is in it is named for what it holds


def inputs_folder(outputs: str) -> Path:
    """Where the inputs of all jobs are, on the file system that all nodes share."""
    return Path(outputs) / ".fewstep"
