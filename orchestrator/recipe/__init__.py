"""What a run is asked for, checked and refused in a sentence."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fewstep.doors import lazy

if TYPE_CHECKING:
    from fewstep.orchestrator.recipe.data import Data as Data
    from fewstep.orchestrator.recipe.data import Trajectories as Trajectories
    from fewstep.orchestrator.recipe.evaluation import Evaluation as Evaluation
    from fewstep.orchestrator.recipe.method import MethodSpec as MethodSpec
    from fewstep.orchestrator.recipe.parsing import load as load
    from fewstep.orchestrator.recipe.parsing import vary as vary
    from fewstep.orchestrator.recipe.recipe import Export as Export
    from fewstep.orchestrator.recipe.recipe import Recipe as Recipe
    from fewstep.orchestrator.recipe.resources import Resources as Resources
    from fewstep.orchestrator.recipe.search import Search as Search
    from fewstep.orchestrator.recipe.teacher import TeacherSpec as TeacherSpec
    from fewstep.orchestrator.recipe.training import Training as Training

__getattr__ = lazy(__file__)
