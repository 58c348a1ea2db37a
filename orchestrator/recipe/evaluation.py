"""Say how a student is measured, and refuse what a protocol of the literature does not allow."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from pydantic import Field, field_validator, model_validator

from fewstep.orchestrator.recipe.section import Section
from fewstep.orchestrator.sampling.solvers import SOLVERS

PROTOCOLS: Mapping[str, Mapping[str, int]] = {"coco-30k": {"samples": 30_000}}  # fields that each fixes


class Evaluation(Section):
    """How the student is compared with its teacher: at the same few steps, and with the teacher at many."""

    prompts: str = Field(
        default="",
        description="The prompts to sample, in any form that `trajectories.prompts` has; best are ones that "
        "nothing was trained on.",
    )
    protocol: Literal["", "coco-30k"] = Field(
        default="",
        description="A protocol of the literature: `coco-30k` samples each of 30,000 captions once and "
        'compares with real images; "" is none.',
    )
    samples: int = Field(default=500, gt=1, description="How many samples of each system are compared.")
    other_samples: int = Field(
        default=0,
        ge=0,
        description="How many are compared at other numbers of steps than the student is made for; 0 is as many.",
    )
    steps: tuple[int, ...] = Field(
        default=(1, 2, 4, 8),
        description="Numbers of steps that the student is sampled with; the teacher is sampled with as many "
        "evaluations of its network.",
    )
    reference_steps: int = Field(
        default=50, gt=0, description="Steps of the teacher's samples that all are compared with."
    )
    solvers: tuple[str, ...] = Field(
        default=("ddim", "dpm++", "unipc"),
        description="Solvers among which the teacher's best at few steps is chosen: any of "
        "`trajectories.solver` but rk45, and the stochastic analytic-dpm; the first makes its "
        "reference.",
    )
    guidance_scales: tuple[float, ...] = Field(
        default=(1.0, 1.5, 2.0, 3.0, 5.0),
        description="Guidance scales among which the teacher's best is chosen, besides `guidance_scale`; 1 is none.",
    )
    guidance_scale: float = Field(
        default=3.0, ge=1, description="The guidance scale of the teacher's reference; 1 is none."
    )
    student_guidance_scales: tuple[float, ...] = Field(
        default=(),
        description="Guidance scales among which the student's best is chosen, if it takes one; [] is the "
        "teacher's list.",
    )
    selection_samples: int = Field(
        default=256,
        gt=1,
        description="Samples for each of these choices and for evaluations while training, on noise used for "
        "nothing else.",
    )
    images: str = Field(
        default="",
        description="Real images to compare with too: Parquet in Hugging Face's format (column `image`) or a "
        'folder of files; "" is none.',
    )
    statistics: str = Field(
        default="",
        description="Statistics of real images to compare with by Frechet distance: an .npz file with `mu` "
        'and `sigma`, or features that fewstep wrote; "" is none.',
    )
    features: str = Field(
        default="mobilenetv2",
        description="The network whose features are compared: mobilenetv2, random, clip:PATH_OR_ID, "
        "dinov2:PATH_OR_ID or inception:TORCHSCRIPT_FILE. All but random shrink large pictures to the size that they "
        "were trained at, and figures by them say so.",
    )
    check: str = Field(
        default="random",
        description="A second network, without whose consent nothing is called better: any of `features`, of which "
        'random is convolutions that nothing was learned by; "" is none.',
    )
    seed: int = Field(default=1_000_000, description="The seed of the noise, the order of prompts and the bootstrap.")
    batch_size: int = Field(default=64, gt=0, description="Images that are sampled and measured together.")
    bootstraps: int = Field(default=1000, gt=0, description="Resamplings behind each confidence interval.")
    baselines: str = Field(
        default="",
        description="A folder of teacher's features that an earlier evaluation stored, reused where they fit; "
        '"" measures them again.',
    )

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
