"""Say what a search varies, what it chooses by, and when it ends."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import Discriminator, Field, Tag, model_validator

from fewstep.orchestrator.recipe.section import Section


class Span(Section):
    """A range of numbers."""

    low: float = Field(description="The least value.")
    high: float = Field(description="The greatest value.")
    log: bool = Field(default=False, description="Whether to draw evenly between the logarithms of the two.")


RANGE = ""  # pydantic names the kind where something is wrong in it; of a range the field says enough


def _kind(value: object) -> str | None:
    if isinstance(value, Mapping | Span):
        return RANGE
    return "options" if isinstance(value, list | tuple) else None


Candidates = Annotated[
    Annotated[Span, Tag(RANGE)] | Annotated[tuple[object, ...], Tag("options")],
    Discriminator(
        _kind,
        custom_error_type="candidates",
        custom_error_message="must be a list of options, like [20, 40], or a range, like {low: 10, high: 40}",
    ),
]


class Search(Section):
    """What `fewstep search` tries. It starts no trial once one of its budgets is spent; of those, 0 is no limit."""

    searcher: Literal["optuna", "random", "grid"] = Field(
        default="optuna",
        description="How trials are chosen: by Optuna from earlier ones, at random, or every combination.",
    )
    space: Mapping[str, Candidates] = Field(
        default={},
        description="What trials vary besides what the method declares: fields like `method.skip` with a list "
        "of options or a range {low, high, log}; a single option fixes a field.",
    )
    prompts: str = Field(
        default="",
        description="Prompts that trials are compared by, so that those of the evaluation stay unseen until the end.",
    )
    trials: int = Field(default=0, ge=0, description="The most trials; 0 is no limit.")
    hours: float = Field(default=0.0, ge=0, description="The most hours from the search's start; 0 is no limit.")
    device_hours: float = Field(
        default=0.0, ge=0, description="The most hours of GPUs, or of workers if they have none; 0 is no limit."
    )
    objectives: tuple[str, ...] = Field(
        default=(),
        description="What is minimized: kid@STEPS for any of `evaluation.steps`, or training_hours; [] is the "
        "KID at the number of steps nearest to what the method is made for.",
    )
    scheduler: Literal["none", "asha", "median"] = Field(
        default="none",
        description="What ends bad trials early, by evaluations while training (`training.evaluate_every`).",
    )
    stop_on: str = Field(
        default="", description='The objective that the scheduler goes by; "" is the only one there is.'
    )
    concurrent: int = Field(
        default=0, ge=0, description="Trials that run at a time; 0 is as many as the cluster has room for."
    )
    seeds: int = Field(
        default=3, ge=2, description="Seeds that the best trial and the unchanged recipe are trained with in the end."
    )

    @model_validator(mode="after")
    def _consistent(self) -> Search:
        for field, candidates in self.space.items():
            if isinstance(candidates, tuple):
                if not candidates:
                    raise ValueError(f"space.{field} is empty; list at least one option")
                continue
            low, high = candidates.low, candidates.high
            if low >= high:
                raise ValueError(f"space.{field} is empty: low={low:g} must be below high={high:g}")
            if candidates.log and low <= 0:
                raise ValueError(f"space.{field}: low={low:g} has no logarithm; start above 0 or leave log out")
        if self.scheduler != "none" and len(self.objectives) > 1 and not self.stop_on:
            raise ValueError(
                f"scheduler: {self.scheduler} goes by one number and there are {len(self.objectives)} objectives; "
                f"name one of them as stop_on, or set scheduler to none"
            )
        if self.stop_on and self.scheduler == "none":
            raise ValueError(f"stop_on is {self.stop_on}, but nothing stops early; set scheduler to asha or median")
        return self
