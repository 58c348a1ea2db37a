"""Names what a search minimises and what it may spend, by its recipe."""

from __future__ import annotations

import re
from dataclasses import dataclass

from fewstep.orchestrator.errors import BadInput, nearest
from fewstep.orchestrator.recipe.recipe import Recipe

TRAINING_HOURS = "training_hours"  # of devices
STEP, KID = "training_steps", "kid"  # of an evaluation while training, in what a trial tells Ray Tune


def kid_name(steps: int) -> str:
    """The KID to the teacher's many-step pictures at so many steps of the student."""
    return f"kid@{steps}"


def steps_of(objective: str) -> int:
    """The student's steps of a KID's name; 0 of another objective."""
    match = re.fullmatch(r"kid@(\d+)", objective)
    return int(match[1]) if match else 0


def objectives_of(recipe: Recipe) -> tuple[str, ...]:
    """What the recipe's search minimises. Raises BadInput for a number that evaluation does not produce."""
    choices = [*(kid_name(steps) for steps in recipe.evaluation.steps), TRAINING_HOURS]
    objectives = recipe.search.objectives or (kid_name(_judged_steps(recipe)),)
    for name in (*objectives, *([recipe.search.stop_on] if recipe.search.stop_on else ())):
        if name not in choices:
            raise BadInput(
                f"search.objectives: evaluation produces no {name!r}{nearest(name, choices)}; "
                f"it gives {', '.join(choices)}"
            )
    if len(set(objectives)) < len(objectives):
        raise BadInput(f"search.objectives: {', '.join(objectives)} names one twice")
    if recipe.search.stop_on and recipe.search.stop_on not in objectives:
        raise BadInput(f"search.stop_on: {recipe.search.stop_on} is none of the objectives {', '.join(objectives)}")
    return objectives


def target_of(recipe: Recipe) -> str:
    """The one objective that trials are stopped by, and that the best is the best by: `stop_on`, or the first."""
    return recipe.search.stop_on or objectives_of(recipe)[0]


def watched_steps(recipe: Recipe) -> int:
    """The student's steps that a trial is evaluated at while it trains: the target's."""
    return steps_of(target_of(recipe)) or _judged_steps(recipe)


def watched(recipe: Recipe) -> str:
    """The key of that in metrics.jsonl."""
    return f"quality/{kid_name(watched_steps(recipe))}"


def check_stopping(recipe: Recipe) -> None:
    """Refuse a scheduler that would have nothing to go by."""
    scheduler, target = recipe.search.scheduler, target_of(recipe)
    if scheduler == "none":
        return
    if not steps_of(target):
        raise BadInput(f"search.stop_on: {target} is not measured while training; name a KID, like kid@4")
    if not recipe.training.evaluate_every:
        raise BadInput(
            f"search.scheduler: {scheduler} goes by evaluations while training, and there are none; set "
            f"training.evaluate_every, like {max(1, recipe.training.steps // 5)}"
        )


def device_hours(recipe: Recipe, workers: int, seconds: float) -> float:
    """Hours of GPUs, or of workers where they have none."""
    return seconds * workers * (recipe.resources.gpus_per_worker or 1) / 3600


@dataclass(frozen=True)
class Budget:
    """What a search may spend; 0 is no limit."""

    trials: int
    hours: float
    device_hours: float

    @classmethod
    def of(cls, recipe: Recipe) -> Budget:
        """The recipe's. Raises BadInput where a search would never end."""
        search = recipe.search
        if not (search.trials or search.hours or search.device_hours) and search.searcher != "grid":
            raise BadInput("search.trials is missing: a search needs a budget; set trials, hours or device_hours")
        return cls(search.trials, search.hours, search.device_hours)

    def is_spent(self, trials: int, hours: float, device_hours: float) -> bool:
        """Whether there is to be no further trial."""
        pairs = ((self.trials, trials), (self.hours, hours), (self.device_hours, device_hours))
        return any(0 < limit <= amount for limit, amount in pairs)


def _judged_steps(recipe: Recipe) -> int:
    """The judged number of steps that is nearest to what the student is made for."""
    student_steps = recipe.method.build().student_steps
    return min(recipe.evaluation.steps, key=lambda steps: (abs(steps - student_steps), steps))
