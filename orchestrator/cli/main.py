"""Starts the `fewstep` command: registers every room's commands and quiets the libraries below them."""

from __future__ import annotations

import os
import shutil

from fewstep.orchestrator.cli import datasets, jobs, recipe, runs
from fewstep.orchestrator.cli.app import app

COMMANDS = (runs, datasets, jobs, recipe)  # importing them registers their commands


def main() -> None:
    """Entry point of the `fewstep` command."""
    # Libraries talk about themselves on stderr; what a person should know is said by fewstep.
    quiet = {"TRANSFORMERS_VERBOSITY": "error", "DIFFUSERS_VERBOSITY": "error"}
    if not shutil.which("nvidia-smi"):
        quiet["DS_ACCELERATOR"] = "cpu"  # or DeepSpeed says at every import that it found no GPU
    for name, value in quiet.items():
        os.environ.setdefault(name, value)
    app()


if __name__ == "__main__":
    main()
