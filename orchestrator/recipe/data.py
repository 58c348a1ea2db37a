"""Say what a student learns from: the teacher's samples, real images, or what was imported."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, PositiveInt, field_validator, model_validator

from fewstep.orchestrator.recipe.section import Section
from fewstep.orchestrator.sampling.solvers import ODE_SOLVERS, SOLVERS
from fewstep.orchestrator.storage.store import check_url


class Trajectories(Section):
    """What the teacher samples, once, for every training run after it."""

    prompts: str = Field(
        default="",
        description="The prompts to sample: a .txt file with one a line, or a .csv, .parquet or .jsonl file "
        'or a Hugging Face datasets folder with a column of them; "" is for a teacher without '
        "conditions.",
    )
    prompt_column: str = Field(default="prompt", description="The column of `prompts` that holds them, in a table.")
    prompt_repeats: int = Field(default=1, gt=0, description="How many samples in a row share a prompt.")
    prompt_order: Literal["rounds", "random"] = Field(
        default="rounds",
        description="`rounds` goes through all prompts before any comes again; `random` draws each independently.",
    )
    samples: int = Field(
        default=0,
        ge=0,
        description="How many samples to make; required if the method learns from what the teacher samples.",
    )
    negative_prompt: str = Field(
        default="", description="The prompt of the unconditional evaluation that guidance moves away from."
    )
    num_inference_steps: int = Field(default=50, gt=0, description="The solver's steps from noise to a sample.")
    solver: str = Field(
        default="ddim",
        description=f"The ODE solver that the teacher samples with: {', '.join(ODE_SOLVERS)}.",
    )
    tolerance: float = Field(
        default=1e-5,
        ge=1e-6,
        description="Absolute and relative error that `rk45` allows a step; float32 resolves nothing finer than 1e-6.",
    )
    guidance_scale: tuple[float, float] = Field(
        default=(1.0, 1.0),
        description="The guidance scale, or a range [low, high] to draw each sample's from; 1 is no guidance.",
    )
    guidance_scales: tuple[float, ...] = Field(
        default=(), description="A list to draw each sample's guidance scale from, in place of `guidance_scale`."
    )
    save: Literal["all", "ends"] | tuple[int, ...] = Field(
        default="all",
        description="Which points of a path are stored: `all`, the two `ends`, or a list of steps (0 is the "
        "noise) to which the ends are added.",
    )
    dtype: Literal["float16", "float32"] = Field(default="float16", description="The precision of stored tensors.")
    seed: int = Field(default=0, description="The seed of each sample's noise, prompt and guidance scale.")
    batch_size: PositiveInt | Literal["auto"] = Field(
        default=32,
        description="Samples that the teacher evaluates together; `auto` times powers of two and keeps the "
        "best. It is part of what identifies the data set.",
    )
    shard_size: int = Field(
        default=256,
        gt=0,
        description="Samples per shard, the unit that is committed or retried; a multiple of `batch_size`.",
    )
    store: str = Field(
        default="",
        description='Where data sets are kept, a folder or s3://bucket/folder that several runs may share; "" '
        "is a folder of the run's own.",
    )
    single_writer: bool = Field(
        default=False,
        description="Use a store without put-if-absent; nothing then keeps two runs on it apart, so never "
        "start a second one.",
    )
    deadline_s: float = Field(
        default=3600.0, gt=0, description="Seconds that a shard may take before its actor is replaced."
    )
    attempts: int = Field(
        default=3,
        gt=0,
        description="Times that a shard may fail before it is quarantined and the run goes on without it.",
    )

    @field_validator("store")
    @classmethod
    def _has_scheme(cls, value: str) -> str:
        check_url(value)
        return value

    @field_validator("guidance_scale", mode="before", json_schema_input_type=float | tuple[float, float])
    @classmethod
    def _range(cls, value: object) -> object:
        return (value, value) if isinstance(value, int | float) else value

    @model_validator(mode="after")
    def _consistent(self) -> Trajectories:
        low, high = self.guidance_scale
        if low > high:
            raise ValueError(f"guidance_scale range is reversed: [{low:g}, {high:g}]; write [{high:g}, {low:g}]")
        if low < 1:
            raise ValueError(f"guidance_scale starts at {low:g}; 1 is no guidance and the least")
        if self.guidance_scales and min(self.guidance_scales) < 1:
            raise ValueError(f"guidance_scales holds {min(self.guidance_scales):g}; 1 is no guidance and the least")
        if self.guidance_scales and self.guidance_scale != (1, 1):
            raise ValueError("guidance_scale and guidance_scales are both given; keep one of them")
        if self.batch_size != "auto" and self.shard_size % self.batch_size:
            raise ValueError(f"shard_size must be a multiple of batch_size={self.batch_size}, got {self.shard_size}")
        if self.solver not in SOLVERS:
            raise ValueError(f"solver {self.solver!r} is not one of {', '.join(ODE_SOLVERS)}")
        if self.solver not in ODE_SOLVERS:
            raise ValueError(
                f"solver {self.solver!r} draws noise on its way, so that its states are no path of the ODE; "
                f"choose one of {', '.join(ODE_SOLVERS)}"
            )
        return self


class Data(Section):
    """What to train on that the teacher does not sample: real images, or a data set made elsewhere."""

    images: str = Field(
        default="",
        description="Real images to train on: Parquet in Hugging Face's format (column `image`) or a folder "
        'of files; "" trains on the teacher\'s samples.',
    )
    caption_column: str = Field(
        default="prompt",
        description='The column with each image\'s condition, a text or the number of a class; "" is for none.',
    )
    imported: str = Field(
        default="",
        description='A data set that `fewstep import` made, to use in place of the teacher\'s samples; "" has '
        "it sample.",
    )
    batch_size: int = Field(
        default=8,
        gt=0,
        description="Images that the autoencoder encodes together. It is part of what identifies the data set.",
    )
