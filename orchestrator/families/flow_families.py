"""Teachers on straight paths: Stable Diffusion 3 and FLUX."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TypeVar, cast

import torch
from diffusers import FluxPipeline, StableDiffusion3Pipeline
from torch import Tensor

from orchestrator.errors import BadInput
from orchestrator.family import PATCH, LatentFamily, drawn
from orchestrator.flux import FluxNetwork, pack
from orchestrator.mmdit import MMDiTNetwork
from orchestrator.solvers import falling

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
        return (drawn(self.pipeline.vae, images, noise) - config.shift_factor) * config.scaling_factor

    def shift(self, config: Mapping[str, object]) -> float:
        """For pictures of this size, linear in the number of tokens before the exponential.

        Raises BadInput for sizes that differ in that.
        """
        names = ("base_image_seq_len", "max_image_seq_len", "base_shift", "max_shift")
        few, many, low, high = (float(str(config[name])) for name in names)
        tokens, *others = {height * width // PATCH**2 for _, height, width in self.latent_shapes}
        if others:
            raise BadInput(
                "teacher.resolution: its scheduler shifts the noise by the picture's size (use_dynamic_shifting), so "
                "that all sizes need one area; or set a fixed shift in its scheduler_config.json"
            )
        return math.exp(low + (high - low) * (tokens - few) / (many - few))


class StableDiffusion3(FlowFamily[StableDiffusion3Pipeline]):
    """A transformer on straight paths, with two or three text encoders: Stable Diffusion 3 and 3.5."""

    pipeline_class = StableDiffusion3Pipeline

    @property
    def network(self) -> MMDiTNetwork:
        """The transformer."""
        return MMDiTNetwork(self.pipeline.transformer)

    @property
    def own_shape(self) -> tuple[int, int]:
        """As the transformer was trained."""
        config = self.pipeline.transformer.config
        return config.in_channels, config.sample_size

    @torch.inference_mode()
    def encode(self, conditions: Sequence[str]) -> dict[str, Tensor]:
        """`prompt` [n, tokens, width] and `pooled` [n, width]."""
        texts = cast(str, list(conditions))  # it takes lists, whatever its annotation says
        told = {"device": self.pipeline.device, "do_classifier_free_guidance": False}
        prompt, _, pooled, _ = self.pipeline.encode_prompt(texts, texts, texts, **told)
        return {"prompt": cast(Tensor, prompt), "pooled": cast(Tensor, pooled)}

    def call(self, conditions: Sequence[str], negative: str, steps: int, guidance_scale: float) -> Mapping[str, object]:
        """Prompts, and times that fall evenly to clean data: the pipeline's own would end just before it."""
        negatives = [negative] * len(conditions)
        prompts = {"prompt": list(conditions), "negative_prompt": negatives}
        return {**prompts, **self.size, "sigmas": falling(steps), "guidance_scale": guidance_scale}

    @staticmethod
    def usage(place: str, condition: str, steps: int) -> tuple[dict[str, object], str]:
        """Stock diffusers, told the times of its steps."""
        return {}, f"{condition!r}, sigmas={falling(steps)}"


class Flux(FlowFamily[FluxPipeline]):
    """A transformer with two text encoders: FLUX.1. Guidance, where it knows any, is an input."""

    pipeline_class = FluxPipeline

    @property
    def network(self) -> FluxNetwork:
        """The transformer."""
        return FluxNetwork(self.pipeline.transformer)

    @property
    def own_shape(self) -> tuple[int, int]:
        """As its pipeline has it."""
        return self.pipeline.transformer.config.in_channels // PATCH**2, self.pipeline.default_sample_size

    @torch.inference_mode()
    def encode(self, conditions: Sequence[str]) -> dict[str, Tensor]:
        """`prompt` [n, tokens, width] and `pooled` [n, width]."""
        texts = list(conditions)
        prompt, pooled, _ = self.pipeline.encode_prompt(texts, texts, device=self.pipeline.device)
        return {"prompt": cast(Tensor, prompt), "pooled": cast(Tensor, pooled)}

    def call(self, conditions: Sequence[str], negative: str, steps: int, guidance_scale: float) -> Mapping[str, object]:
        """Prompts. Raises BadInput for a negative one."""
        if negative:
            raise BadInput(f"trajectories.negative_prompt: {negative!r} means nothing to FLUX; leave it out")
        told = {"num_inference_steps": steps, "guidance_scale": guidance_scale}
        return {"prompt": list(conditions), **self.size, **told}

    def shown(self, latents: Tensor) -> Tensor:
        """As tokens."""
        return pack(latents)
