"""Say what a worker has to know of the round that it trains."""

from __future__ import annotations

from dataclasses import dataclass

from fewstep.methods.base import Round
from fewstep.orchestrator.recipe.recipe import Recipe
from fewstep.orchestrator.training.validation import ValidationSpec

PICTURES = "pictures"  # below a round's folder: what the student made of a few prompts, by step


@dataclass(frozen=True)
class RoundJob:
    """What a training worker has to know of its round; plain data, for Ray to carry."""

    recipe: dict[str, object]
    round: int  # from 0
    folder: str  # of the round
    previous: str  # result of the round before
    datasets: dict[str, tuple[str, int]]  # URL and version, for each source
    validation: ValidationSpec | None = None  # where the student is validated while it is trained


def length(round: Round, recipe: Recipe) -> int:
    """Training steps of a round."""
    return max(1, int(recipe.training.steps * round.length))
