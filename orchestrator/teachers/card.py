"""Say what a plan has to know of a teacher, for those who do not load it."""

from __future__ import annotations

from dataclasses import dataclass

from fewstep.methods.diffusion import Prediction
from fewstep.orchestrator.recipe.section import Json


@dataclass(frozen=True)
class TeacherCard:
    """What a plan has to know of a teacher; the same folder gives the same card."""

    revision: str  # hash of the pipeline's files or of a factory's module and weights, or the hub's commit
    pipeline: str  # diffusers class
    scheduler: Json  # configuration as the loaded pipeline holds it: pipelines rewrite some of it silently
    prediction: Prediction
    latent_shape: tuple[int, ...]  # of what is evaluated
    has_guidance_input: bool = False  # where the guidance scale is an input, an evaluation needs no second one
    is_compiled: bool = False  # other kernels, other low bits
    has_pictures: bool = True
    latent_shapes: tuple[tuple[int, ...], ...] = ()  # that shards take in turn, where it is not that one alone

    def dump(self) -> Json:
        """Turn the card into plain data, under the names that plans are hashed with.

        What was added later is left out where it is usual, so that older data sets keep their names.
        """
        shapes = [list(shape) for shape in self.latent_shapes]
        added = {"is_compiled": self.is_compiled, "has_pictures": not self.has_pictures, "latent_shapes": shapes}
        facts = {**vars(self), "latent_shape": list(self.latent_shape), "latent_shapes": shapes}
        facts["is_told_guidance"] = facts.pop("has_guidance_input")
        return {name: value for name, value in facts.items() if added.get(name, True)}
