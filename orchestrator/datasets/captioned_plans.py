"""Plans the data sets of samples that are there already: real images, and what was made elsewhere."""

from __future__ import annotations

import bisect
import itertools
import math
from abc import ABC
from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

from fewstep.orchestrator.datasets.plan import SCALAR_BYTES, DatasetPlan, Shard, shared_fields
from fewstep.orchestrator.datasets.shard_file import ITEM_BYTES
from fewstep.orchestrator.errors import BadInput
from fewstep.orchestrator.recipe.recipe import Recipe

if TYPE_CHECKING:
    from fewstep.orchestrator.inputs.images import Images
    from fewstep.orchestrator.inputs.webdataset import WebDatasetSamples
    from fewstep.orchestrator.teachers.card import TeacherCard


class CaptionedPlan(DatasetPlan, ABC):
    """Samples that are there already, and what is said of them."""

    num_captions: int  # distinct ones; a condition's id is the place among them

    @property
    def num_conditions(self) -> int:
        """One for each distinct caption."""
        return self.num_captions

    def condition_prompt(self, condition: int) -> int:
        """The same number: a caption's place is its condition."""
        return condition

    @property
    def evaluations_per_sample(self) -> int:
        """Never needed of the teacher's network."""
        return 0


class ImagePlan(CaptionedPlan):
    """Real images, as latents; row i is image i, or where there are several sizes the i-th of `arranged` ones."""

    images: str  # where they were, which is no part of the identity
    images_sha256: str
    caption_column: str  # "" where nothing is said of them
    size_counts: tuple[int, ...] = ()  # how many have each of several sizes; follows from images and teacher

    apart: ClassVar[frozenset[str]] = frozenset({"samples", "images", "size_counts"})

    @property
    def _starts(self) -> list[int]:
        """The first row of each size."""
        return list(itertools.accumulate(self.size_counts[:-1], initial=0))

    def sample_shape(self, i: int) -> tuple[int, ...]:
        """Shape of the latents of image i, and of all in its shard."""
        return self.latent_shapes[bisect.bisect_right(self._starts, i) - 1]

    def shards(self) -> list[Shard]:
        """All shards; only the last of each size may be shorter."""
        ends = [*self._starts[1:], self.samples]
        return [
            Shard(range(first, min(first + self.shard_size, end)))
            for start, end in zip(self._starts, ends, strict=True)
            for first in range(start, end, self.shard_size)
        ]

    def row_bytes(self, latent_shape: tuple[int, ...]) -> int:
        """Bytes of the ids and the latent of a sample."""
        return 2 * 8 + math.prod(latent_shape) * ITEM_BYTES[self.dtype]


class ImportPlan(CaptionedPlan):
    """Samples that were made elsewhere, alone or each with its noise; row i is sample i."""

    imported_from: str  # no part of the identity
    imported_sha256: str
    has_noise: bool
    guidance_scale: float  # that they were made with

    apart: ClassVar[frozenset[str]] = frozenset({"samples", "imported_from"})

    def row_bytes(self, latent_shape: tuple[int, ...]) -> int:
        """Bytes of a sample: a path of its two ends where there is noise, or a latent."""
        return SCALAR_BYTES + (1 + self.has_noise) * math.prod(latent_shape) * ITEM_BYTES[self.dtype]


def make_image_plan(recipe: Recipe, card: TeacherCard, images: Images, captions: Sequence[str]) -> ImagePlan:
    """The plan of a recipe's real images, for a teacher."""
    sizes = recipe.teacher.sizes
    return ImagePlan(
        **shared_fields(recipe, card, len(images), recipe.data.batch_size),
        images=images.path,
        images_sha256=images.digest(),
        caption_column=recipe.data.caption_column,
        size_counts=tuple(len(rows) for rows in images.arranged(sizes)) if len(sizes) > 1 else (),
        num_captions=len(set(captions)),
    )


def make_import_plan(
    recipe: Recipe, card: TeacherCard, samples: WebDatasetSamples, captions: Sequence[str]
) -> ImportPlan:
    """The plan of samples that a recipe's teacher made elsewhere. Raises BadInput where their guidance is left open."""
    low, high = recipe.trajectories.guidance_scale
    if samples.has_noise and (low < high or recipe.trajectories.guidance_scales):
        raise BadInput("trajectories.guidance_scale: say with which one the pairs were made; 1 is none")
    return ImportPlan(
        **shared_fields(recipe, card, len(samples), recipe.data.batch_size),
        imported_from=samples.path,
        imported_sha256=samples.digest(),
        num_captions=len(set(captions)),
        has_noise=samples.has_noise,
        guidance_scale=low,
    )
