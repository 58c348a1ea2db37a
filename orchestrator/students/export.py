"""Export a trained student from the driver, which loads no model for it."""

from __future__ import annotations

from pathlib import Path

from fewstep.orchestrator.compute.cluster import connect
from fewstep.orchestrator.compute.tasks import run_task
from fewstep.orchestrator.recipe.recipe import Recipe


def export_student(recipe: Recipe, result: Path, out: Path) -> None:
    """Write the student as a diffusers folder, on the cluster with one worker's resources."""
    connect(recipe.resources)
    run_task(_write, recipe.resources, recipe, result, out)


def _write(recipe: Recipe, result: Path, out: Path) -> None:
    from fewstep.orchestrator.students.pipeline import write

    write(recipe, result, out)
