"""Say which model is distilled and how it is loaded."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Literal

from pydantic import Field, NonNegativeInt, PositiveInt, model_validator

from fewstep.orchestrator.recipe.section import Section

Precision = Literal["float32", "bfloat16", "float16"]


class TeacherSpec(Section):
    """The diffusion model to distill: a diffusers folder, a hub id with a pinned revision, or one of your own."""

    folder: str = Field(
        default="", description="A diffusers pipeline on disk; one of `folder`, `hub` and `factory` is required."
    )
    hub: str = Field(default="", description="The id of a diffusers pipeline on the Hugging Face hub.")
    revision: str = Field(
        default="", description="The commit of the hub id, all 40 digits; a branch or a tag could move and is refused."
    )
    factory: str = Field(
        default="",
        description="A function that returns a `fewstep.OwnModel`, as package.module:function, for a model of "
        "your own.",
    )
    dtype: Precision = Field(default="float32", description="The precision of the teacher's weights.")
    resolution: NonNegativeInt | tuple[tuple[PositiveInt, PositiveInt], ...] = Field(
        default=0,
        description="Pixels along a side, or a list of [height, width] that shards take in turn, of which the "
        "first is evaluated; 0 is the pipeline's own.",
    )
    compile: bool = Field(
        default=False, description="Compile the teacher with torch.compile, for sampling and for training."
    )

    @model_validator(mode="after")
    def _one_origin(self) -> TeacherSpec:
        if [bool(origin) for origin in (self.folder, self.hub, self.factory)].count(True) != 1:
            raise ValueError(
                "needs one of `folder` (a diffusers pipeline on disk), `hub` (a model id) and `factory` (a function)"
            )
        if self.factory and not re.fullmatch(r"[\w.]+:\w+", self.factory):
            raise ValueError(f"factory {self.factory!r} is no function; write it like package.module:function")
        if self.hub and not re.fullmatch("[0-9a-f]{40}", self.revision):
            raise ValueError(
                f"revision {self.revision!r} is no commit of {self.hub}; give all 40 digits of one, "
                "because a branch or a tag may move"
            )
        if self.revision and not self.hub:
            raise ValueError(f"revision {self.revision!r} is for a `hub` id; anything else is what it holds")
        return self

    @property
    def sizes(self) -> tuple[tuple[int, int], ...]:
        """Height and width in pixels, (height, width) each; empty where the pipeline's own size is meant."""
        if isinstance(self.resolution, tuple):
            return self.resolution
        return ((self.resolution, self.resolution),) if self.resolution else ()

    @property
    def origin(self) -> str:
        """The folder, the hub id or the function that it comes from."""
        return self.folder or self.hub or self.factory

    def at(self, folder: str | Path) -> TeacherSpec:
        """A pipeline in another folder, loaded with this one's precision, sizes and compilation."""
        return self.model_copy(update={"folder": str(folder), "hub": "", "revision": "", "factory": ""})


def teacher_name(teacher: TeacherSpec) -> str:
    """A short name for messages and titles: the folder's own name, the hub id or the function."""
    return Path(teacher.folder).name if teacher.folder else teacher.origin
