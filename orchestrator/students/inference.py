"""Says how a recipe's student is sampled: by which arguments of its pipeline, and whether guidance is inside."""

from __future__ import annotations

from dataclasses import dataclass

from fewstep.orchestrator.recipe.recipe import Recipe


def inference_arguments(recipe: Recipe) -> InferenceArguments:
    """What the student's pipeline is called with besides prompt, steps and guidance scale."""
    sampler = recipe.method.build().sampler()
    negative = recipe.trajectories.negative_prompt if sampler.guidance == "composed" else ""
    return InferenceArguments(eta=sampler.gamma if sampler.kind == "strategic" else 0.0, negative_prompt=negative)


def fixed_guidance(recipe: Recipe) -> float | None:
    """1 where guidance is already inside the student; None where it is chosen when sampling."""
    return 1.0 if recipe.method.build().sampler().guidance == "none" else None


@dataclass(frozen=True)
class InferenceArguments:
    """What a student's pipeline is called with besides prompt, noise, steps and guidance scale."""

    eta: float = 0.0
    negative_prompt: str = ""
