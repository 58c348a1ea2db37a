"""Plans a data set: everything its samples depend on, and nothing else."""

from __future__ import annotations

import functools
import hashlib
import json
import math
import struct
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, TypeAdapter

from fewstep.orchestrator.datasets.shard_file import ITEM_BYTES
from fewstep.orchestrator.errors import BadInput
from fewstep.orchestrator.inputs.prompts import prompts_digest
from fewstep.orchestrator.recipe.recipe import Recipe
from fewstep.orchestrator.recipe.section import Json
from fewstep.orchestrator.recipe.teacher import Precision
from fewstep.orchestrator.sampling.solvers import SOLVERS

if TYPE_CHECKING:
    from fewstep.orchestrator.teachers.card import TeacherCard

SCHEMA_VERSION = 1
ROW_GROUP_BYTES = 4 * 1024**2  # what a reader takes at once
SCALAR_BYTES = 3 * 8 + 4  # sample_id, seed, condition_id, guidance_scale
_SHAPES = TypeAdapter(tuple[tuple[int, ...], ...])


@dataclass(frozen=True)
class Shard:
    """Samples that are made and committed together. Its name says which, so that a longer data set can keep it."""

    samples: range

    @property
    def name(self) -> str:
        """How keys and messages spell it: the first sample, and the one after the last."""
        return f"{self.samples.start:08d}-{self.samples.stop:08d}"

    @classmethod
    def named(cls, name: str) -> Shard:
        """The shard with a name."""
        first, stop = name.split("-")
        return cls(range(int(first), int(stop)))


class DatasetPlan(BaseModel, ABC):
    """What every data set is. Its hash is its identity; a row is a function of (plan, i) alone.

    Whoever makes a shard, however often, makes the same bytes on the same compute, because a shard's batches are
    cut by the plan. The number of samples is no part of the identity: more of them are a new version.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    schema_version: Literal[1] = SCHEMA_VERSION
    teacher: Json  # TeacherCard.dump(): revision, pipeline, scheduler configuration, prediction, latent shape
    negative_prompt: str  # the null condition
    samples: int
    dtype: Literal["float16", "float32"]  # of what is stored
    compute_dtype: Precision  # of the teacher's weights
    latent_shape: tuple[int, ...]  # or the first of several, which the teacher has, and shards take in turn
    seed: int
    batch_size: int
    shard_size: int

    apart: ClassVar[frozenset[str]] = frozenset({"samples"})  # fields that are no part of the identity

    @property
    @abstractmethod
    def num_conditions(self) -> int:
        """Conditions that samples may have; their ids are 0 to that."""

    @abstractmethod
    def condition_prompt(self, condition: int) -> int:
        """The prompt of a condition."""

    @abstractmethod
    def row_bytes(self, latent_shape: tuple[int, ...]) -> int:
        """Payload of a sample with latents of this shape."""

    @property
    @abstractmethod
    def evaluations_per_sample(self) -> int:
        """Evaluations of the teacher's network, at least."""

    @property
    def hash(self) -> str:
        """SHA-256 of the canonical JSON of the identity."""
        identity = self.model_dump(mode="json", exclude=set(self.apart))
        canonical = json.dumps(identity, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(canonical.encode()).hexdigest()

    def sample_seed(self, i: int) -> int:
        """Seed of the generator that draws sample i's noise."""
        return _number(self.seed, "noise", i) >> 1  # 63 bits: it fits a signed column

    @property
    def latent_shapes(self) -> tuple[tuple[int, ...], ...]:
        """Shapes of the latents of all sizes: a shard has one, and what the teacher samples takes them in turn."""
        return _SHAPES.validate_python(self.teacher.get("latent_shapes", ())) or (self.latent_shape,)

    def sample_shape(self, i: int) -> tuple[int, ...]:
        """Shape of the latents of sample i, and of all in its shard."""
        return self.latent_shapes[i // self.shard_size % len(self.latent_shapes)]

    def shards(self) -> list[Shard]:
        """All shards; only the last may be shorter."""
        starts = range(0, self.samples, self.shard_size)
        return [Shard(range(first, min(first + self.shard_size, self.samples))) for first in starts]

    def batches(self, shard: Shard) -> list[range]:
        """The samples that the teacher sees together."""
        ids = shard.samples
        return [ids[first : first + self.batch_size] for first in range(0, len(ids), self.batch_size)]

    @property
    def total_bytes(self) -> int:
        """Payload of all samples; Parquet adds little to it."""
        shards = [shard.samples for shard in self.shards()]
        return sum(len(ids) * self.row_bytes(self.sample_shape(ids.start)) for ids in shards)

    @property
    def rows_per_group(self) -> int:
        """Rows that a reader takes at once: about 4 MiB."""
        longest = max(self.row_bytes(shape) for shape in self.latent_shapes)
        return max(1, min(self.shard_size, ROW_GROUP_BYTES // longest))

    @property
    def teacher_evaluations(self) -> int:
        """Evaluations of the teacher's network for all samples, each counted alone."""
        return self.samples * self.evaluations_per_sample

    def differences(self, other: DatasetPlan) -> list[str]:
        """The fields that tell the identities of two plans apart."""
        here, there = (plan.model_dump(exclude=set(plan.apart)) for plan in (self, other))
        return [name for name in here if name not in there or here[name] != there[name]]


class Plan(DatasetPlan):
    """Paths that the teacher samples."""

    solver: str
    scheduler: str  # diffusers class of the solver
    scheduler_options: Json  # laid over the teacher's own configuration
    num_inference_steps: int
    guidance_scale: tuple[float, float]  # drawn uniformly per sample
    guidance_scales: tuple[float, ...]  # drawn from these instead, where there are any
    prompts_sha256: str
    num_prompts: int
    prompt_repeats: int
    prompt_order: Literal["rounds", "random"]
    saved_points: tuple[int, ...]  # of the path: 0 is the noise, num_inference_steps the sample

    def sample_condition(self, i: int) -> int:
        """The condition of sample i: each some times in a row; all in order, then again and again in random orders."""
        draw = i // self.prompt_repeats
        if self.prompt_order == "random":
            return _number(self.seed, "prompt", draw) % self.num_prompts
        turn, index = divmod(draw, self.num_prompts)
        return index if turn == 0 else _order(self.seed, turn, self.num_prompts)[index]

    @property
    def num_conditions(self) -> int:
        """Conditions that samples may have; their ids are 0 to that."""
        drawn = self.num_prompts if self.prompt_order == "random" else math.ceil(self.samples / self.prompt_repeats)
        return min(drawn, self.num_prompts)

    def condition_prompt(self, condition: int) -> int:
        """The prompt of a condition. The order is random, so that few samples meet prompts from the whole list."""
        return _order(self.seed, 0, self.num_prompts)[condition]

    def sample_guidance(self, i: int) -> float:
        """The guidance scale of sample i, as float32 holds it."""
        (low, high), number = self.guidance_scale, _number(self.seed, "guidance", i)
        listed = self.guidance_scales
        drawn = listed[number % len(listed)] if listed else low + (high - low) * number / 2**64
        return struct.unpack("<f", struct.pack("<f", drawn))[0]

    def path_shape(self, i: int) -> tuple[int, ...]:
        """Shape of the saved points of sample i, [points, *latent]."""
        return (len(self.saved_points), *self.sample_shape(i))

    def row_bytes(self, latent_shape: tuple[int, ...]) -> int:
        """Ids, and the saved points of a path."""
        return SCALAR_BYTES + len(self.saved_points) * math.prod(latent_shape) * ITEM_BYTES[self.dtype]

    @property
    def evaluations_per_sample(self) -> int:
        """Teacher evaluations, twice as many with guidance; the least where the solver is adaptive."""
        has_guidance_input = bool(self.teacher.get("is_told_guidance"))
        is_guided = not has_guidance_input and set(self.guidance_scales or self.guidance_scale) != {1.0}
        return SOLVERS[self.solver].evaluations(self.num_inference_steps) * (2 if is_guided else 1)


def make_plan(recipe: Recipe, card: TeacherCard, prompts: Sequence[str], batch_size: int) -> Plan:
    """The plan that a recipe means, for a teacher and its prompts as `read_prompts` gives them."""
    trajectories = recipe.trajectories
    solver, steps, options = SOLVERS[trajectories.solver], trajectories.num_inference_steps, {}
    if solver.is_adaptive:
        options = {"tolerance": trajectories.tolerance}
        steps = (
            steps if trajectories.save == "all" else 1
        )  # it stops where a state is saved, and takes the steps it needs
    return Plan(
        **shared_fields(recipe, card, trajectories.samples, batch_size),
        solver=trajectories.solver,
        scheduler=solver.scheduler,
        scheduler_options={**solver.options, **options},
        num_inference_steps=steps,
        guidance_scale=trajectories.guidance_scale,
        guidance_scales=trajectories.guidance_scales,
        prompts_sha256=prompts_digest(prompts),
        num_prompts=len(prompts),
        prompt_repeats=trajectories.prompt_repeats,
        prompt_order=trajectories.prompt_order,
        saved_points=_saved_points(trajectories.save, steps),
    )


def shared_fields(recipe: Recipe, card: TeacherCard, samples: int, batch_size: int) -> dict[str, Any]:
    """What every plan says."""
    trajectories = recipe.trajectories
    return {
        "teacher": card.dump(),
        "negative_prompt": trajectories.negative_prompt,
        "samples": samples,
        "dtype": trajectories.dtype,
        "compute_dtype": recipe.teacher.dtype,
        "latent_shape": card.latent_shape,
        "seed": trajectories.seed,
        "batch_size": batch_size,
        "shard_size": trajectories.shard_size,
    }


def _saved_points(save: Literal["all", "ends"] | tuple[int, ...], steps: int) -> tuple[int, ...]:
    """The points of a path that are stored, the ends always among them. Raises BadInput for one that is not on it."""
    if save == "all":
        return tuple(range(steps + 1))
    if save == "ends":
        return (0, steps)
    if beyond := [point for point in save if not 0 <= point <= steps]:
        raise BadInput(f"trajectories.save: point {beyond[0]} is not on a path of {steps} steps, 0 to {steps}")
    return tuple(sorted({0, *save, steps}))


def _number(*parts: int | str) -> int:
    """64 random bits that depend on all parts."""
    return int.from_bytes(hashlib.sha256(json.dumps(parts).encode()).digest()[:8], "big")


@functools.lru_cache(maxsize=4)
def _order(seed: int, turn: int, count: int) -> list[int]:
    """A random order of 0..count-1."""
    return sorted(range(count), key=lambda index: _number(seed, "prompt", turn, index))
