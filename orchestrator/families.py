"""The kinds of diffusers pipelines that can be distilled, behind one face."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import ClassVar, Generic, TypeVar, cast

import torch
from diffusers import DiffusionPipeline, StableDiffusionPipeline
from peft import get_peft_model_state_dict
from torch import Tensor, nn

from orchestrator.errors import BadInput, nearest
from orchestrator.pipelines.class_conditional import ClassConditionalPipeline
from orchestrator.recipe import TeacherSpec
from orchestrator.unet import ADAPTER, UNetNetwork

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
Pipeline = TypeVar("Pipeline", bound=DiffusionPipeline)


class Family(ABC, Generic[Pipeline]):
    """A loaded pipeline: what its network is shown, and what its latents look like.

    Conditions are spelled as text for every family; the empty text is the null condition.
    """

    pipeline_class: ClassVar[type[DiffusionPipeline]]
    task: ClassVar[str]  # as model hubs name it

    def __init__(self, pipeline: Pipeline) -> None:
        self.pipeline = pipeline
        for part in pipeline.components.values():
            if isinstance(part, nn.Module):
                part.requires_grad_(False).eval()

    @property
    @abstractmethod
    def network(self) -> UNetNetwork:
        """What is distilled."""

    @property
    @abstractmethod
    def latent_shape(self) -> tuple[int, ...]:
        """Of one sample, without the batch."""

    @property
    def image_size(self) -> int:
        """Height and width of a picture."""
        return self.latent_shape[-1]

    @abstractmethod
    def encode(self, conditions: Sequence[str]) -> dict[str, Tensor]:
        """What the network is conditioned on, one row per condition. Raises BadInput for one that has no meaning."""

    @abstractmethod
    def decode(self, latents: Tensor) -> Tensor:
        """Latents to images [n, 3, height, width] in -1..1, float32; not clamped, which would stop gradients."""

    @abstractmethod
    def latents(self, images: Tensor, noise: Tensor) -> Tensor:
        """Images [n, 3, height, width] in -1..1 to latents, which are drawn with `noise`, [n, *latent] both."""

    @abstractmethod
    def call(self, conditions: Sequence[str], negative: str) -> Mapping[str, object]:
        """What the pipeline is called with for these conditions."""

    @abstractmethod
    def save_lora(self, folder: Path) -> None:
        """Write the network's adapters."""

    @staticmethod
    @abstractmethod
    def usage(place: str, condition: str) -> tuple[str, str]:
        """Python that loads an exported folder, and its pipeline's first argument."""


class StableDiffusion(Family[StableDiffusionPipeline]):
    """Text to image with one text encoder: Stable Diffusion 1 and 2."""

    pipeline_class = StableDiffusionPipeline
    task = "text-to-image"

    @property
    def network(self) -> UNetNetwork:
        """The UNet."""
        return UNetNetwork(self.pipeline.unet)

    @property
    def latent_shape(self) -> tuple[int, ...]:
        """[channels, height, width]."""
        config = self.pipeline.unet.config
        return (config.in_channels, config.sample_size, config.sample_size)

    @property
    def image_size(self) -> int:
        """The autoencoder's enlargement of the latents."""
        return self.latent_shape[-1] * self.pipeline.vae_scale_factor

    @torch.inference_mode()
    def encode(self, conditions: Sequence[str]) -> dict[str, Tensor]:
        """Prompts as `prompt` [n, tokens, width]."""
        prompt, _ = self.pipeline.encode_prompt(list(conditions), self.pipeline.device, 1, False)
        return {"prompt": prompt}

    def decode(self, latents: Tensor) -> Tensor:
        """Through the autoencoder."""
        vae = self.pipeline.vae
        return vae.decode(latents.to(vae.device, vae.dtype) / vae.config.scaling_factor).sample.float()

    @torch.inference_mode()
    def latents(self, images: Tensor, noise: Tensor) -> Tensor:
        """Drawn from what the autoencoder believes, as the teacher's own training data was."""
        vae = self.pipeline.vae
        believed = vae.encode(images.to(vae.device, vae.dtype)).latent_dist
        return (believed.mean.float() + believed.std.float() * noise.to(vae.device)) * vae.config.scaling_factor

    def call(self, conditions: Sequence[str], negative: str) -> Mapping[str, object]:
        """Prompts and negative prompts."""
        return {"prompt": list(conditions), "negative_prompt": [negative] * len(conditions)}

    def save_lora(self, folder: Path) -> None:
        """For `load_lora_weights`."""
        layers = cast(dict, get_peft_model_state_dict(self.pipeline.unet, adapter_name=ADAPTER))
        type(self.pipeline).save_lora_weights(folder, unet_lora_layers=layers)

    @staticmethod
    def usage(place: str, condition: str) -> tuple[str, str]:
        """Stock diffusers."""
        return f"DiffusionPipeline.from_pretrained({place!r})", repr(condition)


class ClassConditional(Family[ClassConditionalPipeline]):
    """Pixels by class, on a UNet2DConditionModel without attention to text. A condition is a class's number."""

    pipeline_class = ClassConditionalPipeline
    task = "unconditional-image-generation"

    @property
    def network(self) -> UNetNetwork:
        """The UNet."""
        return UNetNetwork(self.pipeline.unet)

    @property
    def latent_shape(self) -> tuple[int, ...]:
        """[channels, height, width] of the picture itself."""
        config = self.pipeline.unet.config
        return (config.in_channels, config.sample_size, config.sample_size)

    def encode(self, conditions: Sequence[str]) -> dict[str, Tensor]:
        """Classes as `class` [n, classes], one-hot; the last class is the null condition."""
        classes = self.pipeline.null_class + 1
        labels = torch.tensor([self._label(condition) for condition in conditions], device=self.pipeline.device)
        return {"class": nn.functional.one_hot(labels, classes).float()}

    def decode(self, latents: Tensor) -> Tensor:
        """Pixels are what they are; grey ones are shown in three channels."""
        return latents.float().expand(-1, 3, -1, -1)

    def latents(self, images: Tensor, noise: Tensor) -> Tensor:
        """Pixels are what they are; a grey teacher sees their brightness."""
        return images if self.latent_shape[0] == images.shape[1] else images.mean(1, keepdim=True)

    def call(self, conditions: Sequence[str], negative: str) -> Mapping[str, object]:
        """Class labels. Raises BadInput for a negative prompt."""
        if negative:
            raise BadInput(f"trajectories.negative_prompt: {negative!r} means nothing to a class-conditional teacher")
        return {"class_labels": [self._label(condition) for condition in conditions]}

    def save_lora(self, folder: Path) -> None:
        """For the UNet's `load_lora_adapter`; the pipeline has no loader of its own."""
        self.pipeline.unet.save_lora_adapter(folder, adapter_name=ADAPTER)

    @staticmethod
    def usage(place: str, condition: str) -> tuple[str, str]:
        """The folder brings its own pipeline."""
        loaded = f"DiffusionPipeline.from_pretrained({place!r}, custom_pipeline={place!r}, trust_remote_code=True)"
        return loaded, repr([condition])

    def _label(self, condition: str) -> int:
        if not condition:
            return self.pipeline.null_class
        if condition.isdigit() and int(condition) < self.pipeline.null_class:
            return int(condition)
        raise BadInput(f"prompts: {condition!r} is no class; write a number from 0 to {self.pipeline.null_class - 1}")


FAMILIES: dict[str, type[Family]] = {
    family.pipeline_class.__name__: family for family in (StableDiffusion, ClassConditional)
}


def family_of(place: str, revision: str = "") -> type[Family]:
    """The family of a pipeline's folder or hub id. Raises BadInput for one that fewstep does not distill.

    A folder that brings code of its own is told by the name of its class; that code is never run.
    """
    options: dict = {"revision": revision} if revision else {}
    named = cast(dict, DiffusionPipeline.load_config(place, **options))["_class_name"]
    name = named if isinstance(named, str) else named[-1]
    if name not in FAMILIES:
        known = ", ".join(FAMILIES)
        raise BadInput(f"teacher: {place} is a {name}{nearest(name, FAMILIES)}; fewstep distills {known}")
    return FAMILIES[name]


def load(spec: TeacherSpec, device: str | torch.device = "cpu") -> Family:
    """A pipeline on a device. Raises BadInput where there is none of a known family."""
    place, arguments = spec.folder or spec.hub, {"revision": spec.revision} if spec.revision else {}
    try:
        family = family_of(place, spec.revision)
        pipeline = family.pipeline_class.from_pretrained(place, torch_dtype=DTYPES[spec.dtype], **arguments)
    except (OSError, ValueError) as error:
        raise BadInput(f"teacher: {place} cannot be loaded as a diffusers pipeline: {error}") from error
    pipeline.set_progress_bar_config(disable=True)
    return family(pipeline.to(device))
