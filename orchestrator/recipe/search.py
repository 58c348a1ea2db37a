"""What a search is told: what it varies, what it chooses by, and when it ends."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import Discriminator, Field, Tag, model_validator

from fewstep.orchestrator.recipe.section import Section


class Span(Section):
    """A range of numbers."""

    low: float
    high: float
    log: bool = False  # evenly between the logarithms


RANGE = ""  # pydantic names the kind where something is wrong in it; of a range the field says enough


def _kind(value: object) -> str | None:
    if isinstance(value, Mapping | Span):
        return RANGE
    return "options" if isinstance(value, list | tuple) else None


Told = Annotated[
    Annotated[Span, Tag(RANGE)] | Annotated[tuple[object, ...], Tag("options")],
    Discriminator(
        _kind,
        custom_error_type="told",
        custom_error_message="must be a list of options, like [20, 40], or a range, like {low: 10, high: 40}",
    ),
]


class Search(Section):
    """What `fewstep search` tries. It starts no further trial once one of its budgets is spent; 0 is no limit."""

    searcher: Literal["optuna", "random", "grid"] = "optuna"
    space: Mapping[
        str, Told
    ] = {}  # over what the method declares, like method.skip: [20, 40]; one option fixes a field
    prompts: str = ""  # a text file: trials are chosen by these, the result is judged by the evaluation's
    trials: int = Field(default=0, ge=0)
    hours: float = Field(default=0.0, ge=0)
    device_hours: float = Field(default=0.0, ge=0)  # of GPUs, or of workers where they have none
    objectives: tuple[str, ...] = ()  # less is better; () is the KID at the steps that the student is made for
    scheduler: Literal["none", "asha", "median"] = "none"  # ends bad trials early, by what is measured while training
    stop_on: str = ""  # the one objective that it goes by
    concurrent: int = Field(default=0, ge=0)  # trials at a time; 0 is as many as the cluster holds
    seeds: int = Field(default=3, ge=2)  # that the best and the recipe as it is are each trained with in the end

    @model_validator(mode="after")
    def _consistent(self) -> Search:
        for field, told in self.space.items():
            if isinstance(told, tuple):
                if not told:
                    raise ValueError(f"space.{field} is empty; list at least one option")
            elif told.low >= told.high:
                raise ValueError(f"space.{field} is empty: low={told.low:g} must be below high={told.high:g}")
            elif told.log and told.low <= 0:
                raise ValueError(f"space.{field}: low={told.low:g} has no logarithm; start above 0 or leave log out")
        if self.scheduler != "none" and len(self.objectives) > 1 and not self.stop_on:
            raise ValueError(
                f"scheduler: {self.scheduler} goes by one number and there are {len(self.objectives)} objectives; "
                f"name one of them as stop_on, or set scheduler to none"
            )
        if self.stop_on and self.scheduler == "none":
            raise ValueError(f"stop_on is {self.stop_on}, but nothing stops early; set scheduler to asha or median")
        return self
