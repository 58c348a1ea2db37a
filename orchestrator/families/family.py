"""Defines what every kind of pipeline that can be distilled has to tell, and what kinds have in common."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import ClassVar, Generic, TypeVar

import torch
from diffusers import (
    DiffusionPipeline,
    FluxPipeline,
    PixArtAlphaPipeline,
    PixArtSigmaPipeline,
    StableDiffusion3Pipeline,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
)
from peft import get_peft_model_state_dict
from safetensors.torch import save_file
from torch import Tensor, nn

from fewstep.methods.base import Sampler
from fewstep.orchestrator.errors import BadInput
from fewstep.orchestrator.families.autoencoder import sample_latents
from fewstep.orchestrator.families.network import ADAPTER, PipelineNetwork
from fewstep.orchestrator.families.usage import USAGES, Usage
from fewstep.orchestrator.sampling.schedules import number

PATCH = 2  # latents along a side that a transformer takes as one, and a UNet halves
Pipeline = TypeVar("Pipeline", bound=DiffusionPipeline)
LatentPipeline = TypeVar(
    "LatentPipeline",
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    StableDiffusion3Pipeline,
    FluxPipeline,
    PixArtAlphaPipeline,
    PixArtSigmaPipeline,
)


class Family(ABC, Generic[Pipeline]):
    """A loaded pipeline: what its network is shown, and what its latents look like.

    Conditions are spelled as text for every family; the empty text is the null condition.
    """

    pipeline_class: ClassVar[type[DiffusionPipeline]]
    is_conditional: bool = True
    tells_times: ClassVar[bool] = False  # its pipeline tells a flow-matching scheduler where even steps start

    def __init__(self, pipeline: Pipeline, sizes: Sequence[tuple[int, int]] = ()) -> None:
        """`sizes` are heights and widths in pixels to paint, the pipeline's own where there are none."""
        self.pipeline, self.sizes = pipeline, sizes
        for component in pipeline.components.values():
            if isinstance(component, nn.Module):
                component.requires_grad_(False).eval()

    @property
    def usage(self) -> Usage:
        """How people call its pipeline."""
        return USAGES[self.pipeline_class.__name__]

    @property
    @abstractmethod
    def network(self) -> PipelineNetwork:
        """The network that is distilled."""

    @property
    @abstractmethod
    def latent_shape(self) -> tuple[int, ...]:
        """The shape of one sample's latents, without the batch; where there are several sizes, of the first."""

    @property
    def latent_shapes(self) -> tuple[tuple[int, ...], ...]:
        """The shapes of latents, one for each size."""
        return (self.latent_shape,)

    @property
    def has_null(self) -> bool:
        """Whether the network was trained with a null condition, so that it can be guided."""
        return True

    @property
    def has_pictures(self) -> bool:
        """Whether what it samples can be looked at."""
        return True

    @property
    def image_size(self) -> tuple[int, int]:
        """Height and width of a picture, of the first size."""
        return self.pixels(self.latent_shape)

    def pixels(self, latent_shape: Sequence[int]) -> tuple[int, int]:
        """Height and width of a picture with such latents."""
        return latent_shape[-2], latent_shape[-1]

    @abstractmethod
    def encode(self, conditions: Sequence[str]) -> dict[str, Tensor]:
        """What the network is conditioned on, one row per condition. Raises BadInput for one that has no meaning."""

    def size_conditioning(self, latent_shape: Sequence[int]) -> dict[str, Tensor]:
        """The conditions that depend on the picture's size, one row each; for most families none."""
        return {}

    @abstractmethod
    def decode(self, latents: Tensor) -> Tensor:
        """Latents to images [n, 3, height, width] in -1..1, float32; not clamped, which would stop gradients."""

    @abstractmethod
    def latents(self, images: Tensor, noise: Tensor) -> Tensor:
        """Images [n, 3, height, width] in -1..1 to latents, which are drawn with `noise`, [n, *latent] both."""

    @abstractmethod
    def call_arguments(
        self, conditions: Sequence[str], negative: str, steps: int, guidance_scale: float
    ) -> Mapping[str, object]:
        """What the pipeline is called with for these conditions, a number of steps and a guidance scale."""

    def noise_arguments(
        self, noise: Tensor, starting: Sequence[torch.Generator], stepping: Sequence[torch.Generator]
    ) -> Mapping[str, object]:
        """What the pipeline is called with to start from `noise` [n, *latent] and draw what steps need.

        `starting`, one a sample, would draw that noise in float32; `stepping` draw all after it.
        """
        return {"latents": self.pack_latents(noise.to(self.pipeline.dtype)), "generator": list(stepping)}

    def pack_latents(self, latents: Tensor) -> Tensor:
        """Latents [n, *latent] as the pipeline is called with them."""
        return latents

    def unsupported_reason(self, sampler: Sampler) -> str:
        """Why the pipeline cannot sample a student in such a way, and what to do; "" where it can."""
        return ""

    def warnings(self) -> list[str]:
        """What is no fault of the teacher's, but better known before anything is trained; a sentence each."""
        return []

    def shift(self, config: Mapping[str, object]) -> float:
        """The shift that a scheduler makes depend on the picture's size. Raises BadInput where no formula is known."""
        raise BadInput(
            "teacher: its scheduler shifts the noise by the picture's size (use_dynamic_shifting), which is known for "
            "Stable Diffusion 3 and FLUX alone; set a fixed shift in its scheduler_config.json instead"
        )

    def save_lora(self, folder: Path) -> None:
        """Write the network's adapters as peft's `PeftModel.from_pretrained` loads them onto the model."""
        model = self.network.model
        layers: dict[str, Tensor] = get_peft_model_state_dict(model, adapter_name=ADAPTER)
        model.peft_config[ADAPTER].save_pretrained(str(folder))
        tensors = {f"base_model.model.{name}": value.contiguous() for name, value in layers.items()}
        save_file(tensors, folder / "adapter_model.safetensors")


class LatentFamily(Family[LatentPipeline]):
    """Text to image in an autoencoder's latents."""

    def __init__(self, pipeline: LatentPipeline, sizes: Sequence[tuple[int, int]] = ()) -> None:
        super().__init__(pipeline, sizes)
        unit = pipeline.vae_scale_factor * PATCH
        for side in chain(*sizes):
            if side % unit:
                nearest = round(side / unit) * unit or unit
                raise BadInput(f"teacher.resolution: {side} is not a multiple of {unit}; try {nearest}")

    @property
    @abstractmethod
    def own_shape(self) -> tuple[int, int]:
        """The channels of its latents, and their height and width where nothing else is asked for."""

    @property
    def latent_shape(self) -> tuple[int, ...]:
        """[channels, height, width]."""
        return self.latent_shapes[0]

    @property
    def latent_shapes(self) -> tuple[tuple[int, ...], ...]:
        """[channels, height, width] each."""
        (channels, side), scale = self.own_shape, self.pipeline.vae_scale_factor
        shapes = tuple((channels, height // scale, width // scale) for height, width in self.sizes)
        return shapes or ((channels, side, side),)

    def pixels(self, latent_shape: Sequence[int]) -> tuple[int, int]:
        """The autoencoder's enlargement of the latents."""
        _, height, width = latent_shape
        return height * self.pipeline.vae_scale_factor, width * self.pipeline.vae_scale_factor

    @property
    def size(self) -> dict[str, object]:
        """Height and width as arguments of the pipeline."""
        height, width = self.image_size
        return {"height": height, "width": width}

    def save_lora(self, folder: Path) -> None:
        """For `load_lora_weights`."""
        network = self.network
        arguments: dict[str, dict] = {
            f"{network.component}_lora_layers": get_peft_model_state_dict(network.model, adapter_name=ADAPTER),
            # Their scale, which weights alone do not show.
            f"{network.component}_lora_adapter_metadata": network.model.peft_config[ADAPTER].to_dict(),
        }
        self.pipeline.save_lora_weights(folder, **arguments)  # pyright: ignore[reportArgumentType] - named by component


FlowPipeline = TypeVar("FlowPipeline", StableDiffusion3Pipeline, FluxPipeline)


class FlowFamily(LatentFamily[FlowPipeline]):
    """A transformer that answers with the velocity of straight paths."""

    def decode(self, latents: Tensor) -> Tensor:
        """Through the autoencoder."""
        vae, config = self.pipeline.vae, self.pipeline.vae.config
        scaled = latents.to(vae.device, vae.dtype) / config.scaling_factor + config.shift_factor
        return vae.decode(scaled).sample.float()

    @torch.inference_mode()
    def latents(self, images: Tensor, noise: Tensor) -> Tensor:
        """Drawn from what the autoencoder believes, as the teacher's own training data was."""
        config = self.pipeline.vae.config
        return (sample_latents(self.pipeline.vae, images, noise) - config.shift_factor) * config.scaling_factor

    def shift(self, config: Mapping[str, object]) -> float:
        """For pictures of this size, linear in the number of tokens before the exponential.

        Raises BadInput for sizes that differ in that.
        """
        names = ("base_image_seq_len", "max_image_seq_len", "base_shift", "max_shift")
        few, many, low, high = (number(config, name) for name in names)
        tokens, *others = {height * width // PATCH**2 for _, height, width in self.latent_shapes}
        if others:
            raise BadInput(
                "teacher.resolution: its scheduler shifts the noise by the picture's size (use_dynamic_shifting), so "
                "that all sizes need one area; or set a fixed shift in its scheduler_config.json"
            )
        return math.exp(low + (high - low) * (tokens - few) / (many - few))
