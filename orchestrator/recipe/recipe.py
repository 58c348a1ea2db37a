"""The recipe: everything a run is told, checked before anything starts."""

from __future__ import annotations

import math
from typing import Literal

from pydantic import Field, model_validator

from fewstep.orchestrator.recipe.data import Data, Trajectories
from fewstep.orchestrator.recipe.evaluation import Evaluation
from fewstep.orchestrator.recipe.method import MethodSpec
from fewstep.orchestrator.recipe.resources import Resources
from fewstep.orchestrator.recipe.search import Search
from fewstep.orchestrator.recipe.section import Json, Section
from fewstep.orchestrator.recipe.teacher import TeacherSpec
from fewstep.orchestrator.recipe.training import Training


class Export(Section):
    """What the student's folder holds."""

    merged: bool = True  # a pipeline; else a LoRA's adapters alone, for the teacher's own pipeline


def _no_training() -> Training:
    """What a recipe without the section has: no steps, which no section may ask for."""
    return Training.model_construct(steps=0)


class Recipe(Section):
    """One run, from teacher to report."""

    teacher: TeacherSpec
    trajectories: Trajectories = Trajectories()
    data: Data = Data()
    method: MethodSpec
    training: Training = Field(default_factory=_no_training)  # `generate` does without
    evaluation: Evaluation = Evaluation()
    export: Export = Export()
    resources: Resources = Resources()
    search: Search = Search()
    output: str
    trackers: tuple[Literal["tensorboard", "wandb", "mlflow"], ...] = ("tensorboard",)  # that training is followed at

    @model_validator(mode="after")
    def _one_size(self) -> Recipe:
        if len(self.teacher.sizes) > 1 and self.data.imported:
            raise ValueError(
                f"teacher.resolution has {len(self.teacher.sizes)} sizes, and what is imported one; give one"
            )
        return self

    @model_validator(mode="after")
    def _divisible(self) -> Recipe:
        told, counts = self.resources, range(self.resources.first_workers, self.resources.workers + 1)
        parts = math.lcm(*counts) * self.training.accumulation
        if self.has_training and self.training.batch_size % parts:
            workers = "every number of workers that there may be" if told.min_workers else "resources.workers"
            raise ValueError(
                f"training.batch_size={self.training.batch_size} must be a multiple of "
                f"{workers} x training.accumulation = {parts}"
            )
        if self.teacher.compile and self.training.teacher_placement != "replicate":
            raise ValueError(
                f"teacher.compile: compiled code needs the whole teacher, and training.placement is "
                f"{self.training.teacher_placement}; leave compile out, or set training.placement=replicate"
            )
        return self

    @property
    def has_training(self) -> bool:
        """Whether there is a section `training`; what only samples the teacher needs none."""
        return self.training.steps > 0

    def resolved(self) -> Json:
        """The recipe as plain data with every default filled in."""
        absent = set() if self.has_training else {"training"}
        return self.model_dump(mode="json", exclude=absent) | {"method": self.method.resolved()}
