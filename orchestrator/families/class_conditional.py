"""Wraps pipelines that sample by class or unconditionally, in pixels unless they say otherwise."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TypeVar

import torch
from diffusers import DDPMPipeline, DiTPipeline, UNet2DModel
from torch import Tensor, nn

from fewstep.methods.base import Sampler
from fewstep.orchestrator.errors import BadInput
from fewstep.orchestrator.families.custom import nothing
from fewstep.orchestrator.families.family import Family
from fewstep.orchestrator.families.network import ADAPTER
from fewstep.orchestrator.families.unet import PlainUNetNetwork, UNetNetwork
from fewstep.orchestrator.pipelines.class_conditional import ClassConditionalPipeline

Pipeline = TypeVar("Pipeline", ClassConditionalPipeline, DiTPipeline, DDPMPipeline)
ClassPipeline = TypeVar("ClassPipeline", ClassConditionalPipeline, DiTPipeline)


class OneSize(Family[Pipeline]):
    """Pictures of the one size that the network was trained on; of pixels, unless it says otherwise."""

    def __init__(self, pipeline: Pipeline, sizes: Sequence[tuple[int, int]] = ()) -> None:
        super().__init__(pipeline, sizes)
        if set(sizes) - {self.image_size}:
            height, width = self.image_size
            raise BadInput(f"teacher.resolution: this teacher paints {height} x {width} pixels; leave resolution out")

    def decode(self, latents: Tensor) -> Tensor:
        """Pixels are what they are; grey ones are shown in three channels."""
        return latents.float().expand(-1, 3, -1, -1)

    def latents(self, images: Tensor, noise: Tensor) -> Tensor:
        """Pixels are what they are; a grey teacher sees their brightness."""
        return images if self.latent_shape[0] == images.shape[1] else images.mean(1, keepdim=True)


class ByClass(OneSize[ClassPipeline]):
    """A condition is a class's number."""

    @property
    @abstractmethod
    def num_labels(self) -> int:
        """How many labels the network embeds, that of no class included."""

    @property
    @abstractmethod
    def null_class(self) -> int:
        """The label of no class, or where there is none the one after all classes."""

    def encode(self, conditions: Sequence[str]) -> dict[str, Tensor]:
        """Classes as `class` [n, labels], one-hot; the null condition is all zeros where there is no label for it."""
        labels = torch.tensor([self._label(condition) for condition in conditions], device=self.pipeline.device)
        one_hot = nn.functional.one_hot(labels, self.null_class + 1)
        return {"class": one_hot[:, : self.num_labels].float()}

    def call_arguments(
        self, conditions: Sequence[str], negative: str, steps: int, guidance_scale: float
    ) -> Mapping[str, object]:
        """Class labels. Raises BadInput for a negative prompt."""
        if negative:
            raise BadInput(f"trajectories.negative_prompt: {negative!r} means nothing to a class-conditional teacher")
        return {
            "class_labels": [self._label(condition) for condition in conditions],
            "num_inference_steps": steps,
            "guidance_scale": guidance_scale,
        }

    def _label(self, condition: str) -> int:
        if not condition:
            return self.null_class
        if condition.isdigit() and int(condition) < self.null_class:
            return int(condition)
        raise BadInput(f"prompts: {condition!r} is no class; write a number from 0 to {self.null_class - 1}")


class ClassConditional(ByClass[ClassConditionalPipeline]):
    """Pixels by class, on a UNet2DModel, or a UNet2DConditionModel without attention to text."""

    pipeline_class = ClassConditionalPipeline

    @property
    def network(self) -> UNetNetwork | PlainUNetNetwork:
        """The UNet."""
        unet = self.pipeline.unet
        return PlainUNetNetwork(unet) if isinstance(unet, UNet2DModel) else UNetNetwork(unet)

    @property
    def latent_shape(self) -> tuple[int, ...]:
        """[channels, height, width] of the picture itself."""
        config = self.pipeline.unet.config
        return (config.in_channels, config.sample_size, config.sample_size)

    @property
    def has_null(self) -> bool:
        """Whether the pipeline's index declares a label of no class."""
        return self.pipeline.has_null_class

    @property
    def num_labels(self) -> int:
        """The labels that the UNet embeds."""
        return self.pipeline.unet.config.num_class_embeds

    @property
    def null_class(self) -> int:
        """The last one, where the UNet was trained with it."""
        return self.pipeline.null_class

    def save_lora(self, folder: Path) -> None:
        """For the UNet's `load_lora_adapter`, where it has one; the pipeline has no loader of its own."""
        unet = self.pipeline.unet
        if isinstance(unet, UNet2DModel):
            super().save_lora(folder)
        else:
            unet.save_lora_adapter(folder, adapter_name=ADAPTER)


class Unconditional(OneSize[DDPMPipeline]):
    """Pixels, of nothing in particular. There is one condition, the empty one, and no guidance."""

    pipeline_class = DDPMPipeline
    is_conditional = False

    def __init__(self, pipeline: DDPMPipeline, sizes: Sequence[tuple[int, int]] = ()) -> None:
        config = pipeline.unet.config
        if config.num_class_embeds:
            raise BadInput(
                "teacher: its UNet is told a class, which a DDPMPipeline never tells; save it with fewstep's "
                "ClassConditionalPipeline(unet, scheduler, has_null_class=...)"
            )
        if config.out_channels != config.in_channels:
            raise BadInput(
                f"teacher: its UNet answers with {config.out_channels} channels to {config.in_channels}; a learned "
                "variance beside the noise is known for DiT and PixArt alone"
            )
        super().__init__(pipeline, sizes)

    @property
    def network(self) -> PlainUNetNetwork:
        """The UNet."""
        return PlainUNetNetwork(self.pipeline.unet)

    @property
    def latent_shape(self) -> tuple[int, ...]:
        """[channels, height, width] of the picture itself."""
        config = self.pipeline.unet.config
        return (config.in_channels, config.sample_size, config.sample_size)

    @property
    def has_null(self) -> bool:
        """There is nothing to guide to."""
        return False

    def encode(self, conditions: Sequence[str]) -> dict[str, Tensor]:
        """`nothing` [n, 1], zeros. Raises BadInput for a condition that is not empty."""
        return {name: value.to(self.pipeline.device) for name, value in nothing(conditions).items()}

    def call_arguments(
        self, conditions: Sequence[str], negative: str, steps: int, guidance_scale: float
    ) -> Mapping[str, object]:
        """The number of samples and of steps. Raises BadInput for a condition that is not empty."""
        nothing([*conditions, negative])
        return {"batch_size": len(conditions), "num_inference_steps": steps}

    def noise_arguments(
        self, noise: Tensor, starting: Sequence[torch.Generator], stepping: Sequence[torch.Generator]
    ) -> Mapping[str, object]:
        """Its pipeline draws the noise by itself, and all else from the same generators."""
        return {"generator": list(starting)}

    def unsupported_reason(self, sampler: Sampler) -> str:
        """Its pipeline takes no eta."""
        return reason_without_eta(sampler, "DDPMPipeline")


def reason_without_eta(sampler: Sampler, pipeline: str) -> str:
    """Why a pipeline that takes no eta cannot sample a student in such a way; "" where it can."""
    return f"{pipeline} takes no eta, which strategic sampling needs" if sampler.kind == "strategic" else ""
