"""recipe/data.py."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, PositiveInt, field_validator, model_validator

from fewstep.orchestrator.recipe.section import Section
from fewstep.orchestrator.sampling.solvers import ODE_SOLVERS, SOLVERS
from fewstep.orchestrator.storage.store import check_url


class Trajectories(Section):
    """What the teacher samples once, for every training run after it."""

    # .txt (one a line), or .csv, .parquet, .jsonl or a Hugging Face datasets folder with a column; "" where the teacher
    # is told nothing
    prompts: str = ""
    prompt_column: str = "prompt"
    prompt_repeats: int = Field(default=1, gt=0)  # samples in a row with the same prompt
    prompt_order: Literal["rounds", "random"] = "rounds"  # each equally often, or drawn independently
    samples: int = Field(default=0, ge=0)
    negative_prompt: str = ""
    num_inference_steps: int = Field(default=50, gt=0)
    solver: str = "ddim"
    tolerance: float = Field(default=1e-5, ge=1e-6)  # of rk45, absolute and relative; float32 holds no less
    guidance_scale: tuple[float, float] = (1.0, 1.0)  # a value, or a range to draw from per sample; 1 is none
    guidance_scales: tuple[float, ...] = ()  # or a list to draw from
    save: Literal["all", "ends"] | tuple[int, ...] = "all"  # points of a path; the ends are always among them
    dtype: Literal["float16", "float32"] = "float16"  # of the stored tensors
    seed: int = 0
    batch_size: PositiveInt | Literal["auto"] = 32  # samples per teacher evaluation; part of the plan
    shard_size: int = Field(default=256, gt=0)  # samples per shard, a multiple of batch_size
    store: str = ""  # a folder or s3://bucket/folder that several runs may share; the run's own by default
    single_writer: bool = False  # for a store without put-if-absent: nothing then keeps two drivers apart
    deadline_s: float = Field(default=3600.0, gt=0)  # for one shard, before its actor is given up
    attempts: int = Field(default=3, gt=0)  # at one shard, before it is set aside

    @field_validator("store")
    @classmethod
    def _place(cls, value: str) -> str:
        check_url(value)
        return value

    @field_validator("guidance_scale", mode="before")
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
    """What there is to train on that the run does not sample: real images, encoded once, and what was imported."""

    images: str = ""  # Parquet (column `image`, Hugging Face's format) or a folder; "" is the teacher's own samples
    caption_column: str = "prompt"  # text or a class's number; "" is no condition
    imported: str = ""  # a data set that `fewstep import` made, instead of what the teacher would sample
    batch_size: int = Field(default=8, gt=0)  # images that the autoencoder sees together; part of the plan
