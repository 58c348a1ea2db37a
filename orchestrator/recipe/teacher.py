"""recipe/teacher.py."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Literal

from pydantic import NonNegativeInt, PositiveInt, model_validator

from fewstep.orchestrator.recipe.section import Section

Precision = Literal["float32", "bfloat16", "float16"]


class TeacherSpec(Section):
    """The diffusion model to distill: a diffusers folder, a hub id with a pinned revision, or one of your own."""

    folder: str = ""
    hub: str = ""
    revision: str = ""  # of the hub id: a commit
    factory: str = ""  # package.module:function, which returns an `orchestrator.own_model.OwnModel`
    dtype: Precision = "float32"
    # Pixels along a side, or [height, width] of several sizes, which shards take in turn; the first is the one that is
    # judged. 0 is the pipeline's own.
    resolution: NonNegativeInt | tuple[tuple[PositiveInt, PositiveInt], ...] = 0
    compile: bool = False  # with torch.compile, where the teacher samples and where it teaches

    @model_validator(mode="after")
    def _one_place(self) -> TeacherSpec:
        if [bool(place) for place in (self.folder, self.hub, self.factory)].count(True) != 1:
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
        """Height and width in pixels of what is painted, none where that is the pipeline's own."""
        if isinstance(self.resolution, tuple):
            return self.resolution
        return ((self.resolution, self.resolution),) if self.resolution else ()

    @property
    def place(self) -> str:
        """Where it comes from."""
        return self.folder or self.hub or self.factory

    def at(self, folder: str | Path) -> TeacherSpec:
        """Another pipeline of its kind, loaded as this one is."""
        return self.model_copy(update={"folder": str(folder), "hub": "", "revision": "", "factory": ""})


def teacher_name(teacher: TeacherSpec) -> str:
    """What to call the teacher."""
    return Path(teacher.folder).name if teacher.folder else teacher.place
