"""Distill a diffusion model that needs 50 steps into a student that needs 1 to 8, on a Ray cluster.

    import fewstep

    recipe = fewstep.load_recipe("emoji-lcm", ["training.steps=100"])
    fewstep.plan(recipe)
    fewstep.run(recipe)

What the commands do, as functions: each returns what the command prints with --json, and raises BadInput with one
sentence where the recipe cannot be followed. Importing fewstep loads neither torch nor Ray.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from fewstep.doors import lazy

if TYPE_CHECKING:
    from fewstep.orchestrator.errors import BadInput as BadInput
    from fewstep.orchestrator.families.custom import OwnModel as OwnModel  # noqa: F401
    from fewstep.orchestrator.recipe.parsing import load as load_recipe  # noqa: F401
    from fewstep.orchestrator.recipe.recipe import Recipe as Recipe
    from fewstep.orchestrator.search.driver import search as search
    from fewstep.orchestrator.workflow.datasets import generate as generate
    from fewstep.orchestrator.workflow.plan import plan as plan
    from fewstep.orchestrator.workflow.stages import evaluate as evaluate
    from fewstep.orchestrator.workflow.stages import export as export
    from fewstep.orchestrator.workflow.stages import run as run
    from fewstep.orchestrator.workflow.stages import train as train

__getattr__ = lazy(__file__)
