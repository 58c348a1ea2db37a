"""What every part of a recipe is."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class Section(BaseModel):
    """A part of the recipe. Unknown keys are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True)
