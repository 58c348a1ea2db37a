"""Wraps the UNet pipelines of Stable Diffusion 1, 2 and XL."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypeVar, cast

import torch
from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline
from torch import Tensor

from fewstep.orchestrator.families.autoencoder import decode_latents, encode_images
from fewstep.orchestrator.families.family import LatentFamily
from fewstep.orchestrator.families.unet import UNetNetwork

TextPipeline = TypeVar("TextPipeline", StableDiffusionPipeline, StableDiffusionXLPipeline)


class UNetText(LatentFamily[TextPipeline]):
    """Text to image with a UNet."""

    @property
    def network(self) -> UNetNetwork:
        """The UNet."""
        return UNetNetwork(self.pipeline.unet)

    @property
    def own_shape(self) -> tuple[int, int]:
        """The latents that the UNet was trained on."""
        return self.pipeline.unet.config.in_channels, self.pipeline.unet.config.sample_size

    def decode(self, latents: Tensor) -> Tensor:
        """Through the autoencoder, in float32 where its numbers are too large for float16."""
        return decode_latents(self.pipeline.vae, latents)

    def latents(self, images: Tensor, noise: Tensor) -> Tensor:
        """Drawn from what the autoencoder believes, as the teacher's own training data was."""
        return encode_images(self.pipeline.vae, images, noise)


class StableDiffusion(UNetText[StableDiffusionPipeline]):
    """One text encoder: Stable Diffusion 1 and 2."""

    pipeline_class = StableDiffusionPipeline

    @torch.inference_mode()
    def encode(self, conditions: Sequence[str]) -> dict[str, Tensor]:
        """Prompts as `prompt` [n, tokens, width]."""
        prompt, _ = self.pipeline.encode_prompt(list(conditions), self.pipeline.device, 1, False)
        return {"prompt": prompt}

    def call_arguments(
        self, conditions: Sequence[str], negative: str, steps: int, guidance_scale: float
    ) -> Mapping[str, object]:
        """Prompts and negative prompts."""
        negatives = [negative] * len(conditions)
        prompts = {"prompt": list(conditions), "negative_prompt": negatives}
        return {**prompts, **self.size, "num_inference_steps": steps, "guidance_scale": guidance_scale}


class StableDiffusionXL(UNetText[StableDiffusionXLPipeline]):
    """Two text encoders, and the picture's size as a condition: Stable Diffusion XL."""

    pipeline_class = StableDiffusionXLPipeline

    @torch.inference_mode()
    def encode(self, conditions: Sequence[str]) -> dict[str, Tensor]:
        """`prompt` [n, tokens, width], `pooled` [n, width] and `size` [n, 6]: original, crop and target.

        Where the pipeline says so, as Stability's does, the empty prompt is all zeros.
        """
        device = self.pipeline.device
        texts = cast(str, list(conditions))  # it takes lists, whatever its annotation says
        prompt, _, pooled, _ = self.pipeline.encode_prompt(texts, device=device, do_classifier_free_guidance=False)
        if self.pipeline.config["force_zeros_for_empty_prompt"]:
            is_text = torch.tensor([bool(text) for text in conditions], device=device)
            prompt, pooled = prompt * is_text[:, None, None], pooled * is_text[:, None]
        size = self.size_conditioning(self.latent_shape)["size"]
        return {"prompt": prompt, "pooled": pooled, "size": size.expand(len(conditions), -1)}

    def size_conditioning(self, latent_shape: Sequence[int]) -> dict[str, Tensor]:
        """`size` [1, 6]: that it had originally, nothing cropped, and that it is to have."""
        height, width = self.pixels(latent_shape)
        size = [[height, width, 0, 0, height, width]]
        return {"size": torch.tensor(size, dtype=self.pipeline.text_encoder_2.dtype, device=self.pipeline.device)}

    def call_arguments(
        self, conditions: Sequence[str], negative: str, steps: int, guidance_scale: float
    ) -> Mapping[str, object]:
        """Embeddings: the pipeline itself would not make the empty prompt zeros but where it is the negative one."""
        positive, uncond = self.encode(conditions), self.encode([negative] * len(conditions))
        names = {"prompt": "prompt_embeds", "pooled": "pooled_prompt_embeds"}
        prompts = {argument: positive[name] for name, argument in names.items()}
        negatives = {f"negative_{argument}": uncond[name] for name, argument in names.items()}
        return {**prompts, **negatives, **self.size, "num_inference_steps": steps, "guidance_scale": guidance_scale}
