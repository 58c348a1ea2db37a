"""recipe/evaluation.py."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from pydantic import Field, field_validator, model_validator

from fewstep.orchestrator.recipe.section import Section
from fewstep.orchestrator.sampling.solvers import SOLVERS

PROTOCOLS: Mapping[str, Mapping[str, int]] = {"coco-30k": {"samples": 30_000}}  # what each fixes


class Evaluation(Section):
    """How the student is judged: against the teacher at the same few steps, and at many."""

    prompts: str = ""  # as trajectories.prompts; none that the teacher was trained on, ideally
    protocol: Literal["", "coco-30k"] = ""  # of the field: every line of `prompts` once, by real images
    samples: int = Field(default=500, gt=1)
    steps: tuple[int, ...] = (1, 2, 4, 8)  # of the student; of the teacher as many evaluations of its network
    reference_steps: int = Field(default=50, gt=0)  # of the teacher's reference
    solvers: tuple[str, ...] = ("ddim", "dpm++", "unipc")  # for the teacher's best; the first makes its reference
    guidance_scales: tuple[float, ...] = (1.0, 1.5, 2.0, 3.0, 5.0)  # candidates; `guidance_scale` is added
    guidance_scale: float = Field(default=3.0, ge=1)  # of the reference
    student_guidance_scales: tuple[float, ...] = ()  # candidates where guidance is an input; () is the teacher's
    selection_samples: int = Field(default=256, gt=1)  # for choosing, and while training, on seeds of their own
    images: str = ""  # a Parquet file of real images (column `image`), in Hugging Face's format
    statistics: str = ""  # .npz of real images: `mu` and `sigma` of their features, or a file of features of fewstep's
    features: str = "mobilenetv2"
    seed: int = 1_000_000
    batch_size: int = Field(default=64, gt=0)
    bootstraps: int = Field(default=1000, gt=0)
    baselines: str = ""  # a folder of stored teacher features, reused where the plan's hash matches

    @field_validator("steps")
    @classmethod
    def _distinct(cls, value: tuple[int, ...]) -> tuple[int, ...]:
        if not value or min(value) < 1 or len(set(value)) < len(value):
            raise ValueError(f"steps must be distinct positive numbers, like [1, 2, 4, 8]; got {list(value)}")
        return value

    @model_validator(mode="before")
    @classmethod
    def _as_protocol(cls, data: dict[str, object]) -> dict[str, object]:
        protocol = str(data.get("protocol", ""))
        fixed = PROTOCOLS.get(protocol, {})
        for name, value in fixed.items():
            if data.get(name, value) != value:
                raise ValueError(f"protocol {protocol} has {name}={value}, got {data[name]}; leave one of the two out")
        return {**data, **fixed}

    @model_validator(mode="after")
    def _real(self) -> Evaluation:
        if self.protocol and not (self.statistics or self.images):
            raise ValueError(
                f"protocol {self.protocol} compares with real images; give their `statistics`, or `images` themselves"
            )
        return self

    @model_validator(mode="after")
    def _few(self) -> Evaluation:
        if max(self.steps) >= self.reference_steps:
            raise ValueError(
                f"steps goes up to {max(self.steps)}, which must be fewer than reference_steps={self.reference_steps}"
            )
        return self

    @field_validator("solvers")
    @classmethod
    def _known(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if not value:
            raise ValueError("no solver is named; list at least one")
        countable = [name for name, solver in SOLVERS.items() if not solver.is_adaptive]
        for name in value:
            if name not in countable:
                raise ValueError(f"{name!r} is no solver of so many evaluations, like {', '.join(countable)}")
        if SOLVERS[value[0]].is_stochastic:
            raise ValueError(f"the first makes the reference, and {value[0]!r} draws noise on its way; put ddim first")
        return value
