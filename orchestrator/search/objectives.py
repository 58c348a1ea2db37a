"""What a search goes by: the numbers that a trial is judged by, and what it may spend."""

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
    known = [*(kid_name(steps) for steps in recipe.evaluation.steps), TRAINING_HOURS]
    told = recipe.search.objectives or (kid_name(_made_for(recipe)),)
    for name in (*told, *([recipe.search.stop_on] if recipe.search.stop_on else ())):
        if name not in known:
            raise BadInput(
                f"search.objectives: evaluation produces no {name!r}{nearest(name, known)}; it gives {', '.join(known)}"
            )
    if len(set(told)) < len(told):
        raise BadInput(f"search.objectives: {', '.join(told)} names one twice")
    if recipe.search.stop_on and recipe.search.stop_on not in told:
        raise BadInput(f"search.stop_on: {recipe.search.stop_on} is none of the objectives {', '.join(told)}")
    return told


def target_of(recipe: Recipe) -> str:
    """The one objective that trials are stopped by, and that the best is the best by: `stop_on`, or the first."""
    return recipe.search.stop_on or objectives_of(recipe)[0]


def watched_steps(recipe: Recipe) -> int:
    """The student's steps that a trial is evaluated at while it trains: the target's."""
    return steps_of(target_of(recipe)) or _made_for(recipe)


def watched(recipe: Recipe) -> str:
    """The key of that in metrics.jsonl."""
    return f"quality/{kid_name(watched_steps(recipe))}"


def check_stopping(recipe: Recipe) -> None:
    """Refuse a scheduler that would have nothing to go by."""
    told, target = recipe.search, target_of(recipe)
    if told.scheduler == "none":
        return
    if not steps_of(target):
        raise BadInput(f"search.stop_on: {target} is not measured while training; name a KID, like kid@4")
    if not recipe.training.evaluate_every:
        raise BadInput(
            f"search.scheduler: {told.scheduler} goes by evaluations while training, and there are none; set "
            f"training.evaluate_every, like {max(1, recipe.training.steps // 5)}"
        )


def _made_for(recipe: Recipe) -> int:
    """The judged number of steps that is nearest to what the student is made for."""
    wanted = recipe.method.build().student_steps
    return min(recipe.evaluation.steps, key=lambda steps: (abs(steps - wanted), steps))


def device_hours(recipe: Recipe, workers: int, seconds: float) -> float:
    """Of GPUs, or of workers where they have none."""
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
        told = recipe.search
        if not (told.trials or told.hours or told.device_hours) and told.searcher != "grid":
            raise BadInput("search.trials is missing: a search needs a budget; set trials, hours or device_hours")
        return cls(told.trials, told.hours, told.device_hours)

    def is_spent(self, trials: int, hours: float, device_hours: float) -> bool:
        """Whether there is to be no further trial."""
        used = ((self.trials, trials), (self.hours, hours), (self.device_hours, device_hours))
        return any(0 < limit <= much for limit, much in used)
