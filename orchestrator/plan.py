"""The plan of a data set: everything its samples depend on, and nothing else."""

from __future__ import annotations

import functools
import hashlib
import json
import math
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pydantic import BaseModel, ConfigDict

from orchestrator.errors import BadInput
from orchestrator.recipe import Json, Precision, Recipe
from orchestrator.solvers import SOLVERS

if TYPE_CHECKING:
    from orchestrator.teacher import TeacherCard

SCHEMA_VERSION = 1
ROW_GROUP_BYTES = 4 * 1024**2  # what a reader takes at once
SCALAR_BYTES = 3 * 8 + 4  # sample_id, seed, condition_id, guidance_scale
ITEM_BYTES = {"float16": 2, "float32": 4}


@dataclass(frozen=True)
class Shard:
    """Samples that are made and committed together."""

    id: int
    samples: range

    @property
    def name(self) -> str:
        """As keys and messages spell it."""
        return f"{self.id:06d}"


class Plan(BaseModel):
    """What is sampled. Its hash is the identity of the data set; a sample is a function of (plan, i) alone.

    Whoever makes a shard, however often, makes the same bytes on the
    same compute, because a shard's batches are cut by the plan.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    schema_version: Literal[1] = SCHEMA_VERSION
    teacher: Json  # TeacherCard.dump(): revision, pipeline, scheduler configuration, prediction, latent shape
    solver: str
    scheduler: str  # diffusers class of the solver
    scheduler_options: Json  # laid over the teacher's own configuration
    num_inference_steps: int
    guidance_scale: tuple[float, float]  # drawn uniformly per sample
    negative_prompt: str  # the null condition
    prompts_sha256: str
    num_prompts: int
    samples: int
    saved_points: tuple[int, ...]  # of the path: 0 is the noise, num_inference_steps the sample
    dtype: Literal["float16", "float32"]  # of what is stored
    compute_dtype: Precision  # of the teacher's weights
    latent_shape: tuple[int, ...]
    seed: int
    batch_size: int
    shard_size: int

    @property
    def hash(self) -> str:
        """SHA-256 of the canonical JSON."""
        canonical = json.dumps(self.model_dump(mode="json"), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(canonical.encode()).hexdigest()

    @property
    def path_shape(self) -> tuple[int, ...]:
        """Of one sample's saved points, [points, *latent]."""
        return (len(self.saved_points), *self.latent_shape)

    def sample_seed(self, i: int) -> int:
        """Of the generator that draws sample i's noise."""
        return _number(self.seed, "noise", i) >> 1  # 63 bits: it fits a signed column

    def sample_condition(self, i: int) -> int:
        """The condition of sample i: all of them in order, then again and again in random orders."""
        turn, place = divmod(i, self.num_prompts)
        return place if turn == 0 else _order(self.seed, turn, self.num_prompts)[place]

    @property
    def num_conditions(self) -> int:
        """Conditions that some sample has; their ids are 0 to that."""
        return min(self.samples, self.num_prompts)

    def condition_prompt(self, condition: int) -> int:
        """The prompt of a condition. The order is random, so that few samples meet prompts from the whole list."""
        return _order(self.seed, 0, self.num_prompts)[condition]

    def sample_guidance(self, i: int) -> float:
        """The guidance scale of sample i, as float32 holds it."""
        low, high = self.guidance_scale
        drawn = low + (high - low) * _number(self.seed, "guidance", i) / 2**64
        return struct.unpack("<f", struct.pack("<f", drawn))[0]

    def shards(self) -> list[Shard]:
        """All shards; only the last may be shorter."""
        starts = range(0, self.samples, self.shard_size)
        return [Shard(id, range(a, min(a + self.shard_size, self.samples))) for id, a in enumerate(starts)]

    def batches(self, shard: Shard) -> list[range]:
        """The samples that the teacher sees together."""
        ids = shard.samples
        return [ids[first : first + self.batch_size] for first in range(0, len(ids), self.batch_size)]

    @property
    def row_bytes(self) -> int:
        """Payload of one sample."""
        return SCALAR_BYTES + math.prod(self.path_shape) * ITEM_BYTES[self.dtype]

    @property
    def total_bytes(self) -> int:
        """Payload of all samples; Parquet adds little to it."""
        return self.samples * self.row_bytes

    @property
    def rows_per_group(self) -> int:
        """Rows that a reader takes at once: about 4 MiB."""
        return max(1, min(self.shard_size, ROW_GROUP_BYTES // self.row_bytes))

    @property
    def evaluations_per_sample(self) -> int:
        """Teacher evaluations, twice as many with guidance; the least where the solver is adaptive."""
        evaluations = SOLVERS[self.solver].evaluations(self.num_inference_steps)
        return evaluations * (1 if self.guidance_scale == (1.0, 1.0) else 2)

    @property
    def teacher_evaluations(self) -> int:
        """Of all samples, each counted alone."""
        return self.samples * self.evaluations_per_sample

    def differences(self, other: Plan) -> list[str]:
        """The fields that tell two plans apart."""
        return [name for name in Plan.model_fields if self.model_dump()[name] != other.model_dump()[name]]


def make_plan(recipe: Recipe, card: TeacherCard, prompts: Sequence[str]) -> Plan:
    """The plan that a recipe means, for a teacher and its prompts as `read_prompts` gives them."""
    told = recipe.trajectories
    solver, steps, options = SOLVERS[told.solver], told.num_inference_steps, {}
    if solver.is_adaptive:
        options = {"tolerance": told.tolerance}
        steps = steps if told.save == "all" else 1  # it stops where a state is saved, and takes the steps it needs
    return Plan(
        teacher=card.dump(),
        solver=told.solver,
        scheduler=solver.scheduler,
        scheduler_options={**solver.options, **options},
        num_inference_steps=steps,
        guidance_scale=told.guidance_scale,
        negative_prompt=told.negative_prompt,
        prompts_sha256=prompts_digest(prompts),
        num_prompts=len(prompts),
        samples=told.samples,
        saved_points=tuple(range(steps + 1)) if told.save == "all" else (0, steps),
        dtype=told.dtype,
        compute_dtype=recipe.teacher.dtype,
        latent_shape=card.latent_shape,
        seed=told.seed,
        batch_size=told.batch_size,
        shard_size=told.shard_size,
    )


def read_prompts(file: str, field: str = "trajectories.prompts") -> list[str]:
    """The distinct prompts of a text file, one a line, in order; an empty line is the empty prompt.

    A prompt that is repeated counts once. Raises BadInput for a file that is missing, empty or no text.
    """
    try:
        lines = Path(file).read_text(encoding="utf-8-sig").removesuffix("\n").split("\n")
    except FileNotFoundError:
        raise BadInput(f"{field}: there is no file {file}; give a text file with one prompt a line") from None
    except (OSError, UnicodeDecodeError) as error:
        raise BadInput(f"{field}: {file} is no text file in UTF-8 with one prompt a line ({error})") from None
    if not any(line.strip() for line in lines):
        raise BadInput(f"{field}: {file} holds no prompt; write one a line")
    return list(dict.fromkeys(line.strip() for line in lines))


def prompts_digest(prompts: Sequence[str]) -> str:
    """SHA-256 over the prompts in order."""
    return hashlib.sha256(json.dumps(list(prompts)).encode()).hexdigest()


def _number(*parts: int | str) -> int:
    """64 random bits that depend on all parts."""
    return int.from_bytes(hashlib.sha256(json.dumps(parts).encode()).digest()[:8], "big")


@functools.lru_cache(maxsize=4)
def _order(seed: int, turn: int, count: int) -> list[int]:
    """A random order of 0..count-1."""
    return sorted(range(count), key=lambda place: _number(seed, "prompt", turn, place))
