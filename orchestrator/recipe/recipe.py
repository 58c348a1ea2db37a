"""Put the sections of a recipe together and check what no section can check alone."""

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
    """What the exported student's folder holds."""

    merged: bool = Field(
        default=True,
        description="Export a whole diffusers pipeline; false leaves out all but a LoRA's adapters, scheduler "
        "and card, to load into the teacher's own pipeline.",
    )


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
    output: str = Field(
        description="The folder of the run, with its data, checkpoints, student and report; relative to where "
        "the command runs."
    )
    trackers: tuple[Literal["tensorboard", "wandb", "mlflow"], ...] = Field(
        default=("tensorboard",),
        description="Where training is logged besides the run's own files: tensorboard (`tensorboard --logdir "
        "OUTPUT`), or wandb and mlflow, which need `pip install fewstep[trackers]` and read keys "
        "and servers from their own environment variables.",
    )

    @model_validator(mode="after")
    def _one_size(self) -> Recipe:
        if len(self.teacher.sizes) > 1 and self.data.imported:
            raise ValueError(
                f"teacher.resolution has {len(self.teacher.sizes)} sizes, and what is imported one; give one"
            )
        return self

    @model_validator(mode="after")
    def _divisible(self) -> Recipe:
        resources, counts = self.resources, range(self.resources.first_workers, self.resources.workers + 1)
        parts = math.lcm(*counts) * self.training.accumulation
        if self.has_training and self.training.batch_size % parts:
            workers = "every number of workers that there may be" if resources.min_workers else "resources.workers"
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
