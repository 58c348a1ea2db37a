"""Wraps PixArt's transformer as a network that students are made of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import ClassVar, TypeVar

import torch
from diffusers import PixArtAlphaPipeline, PixArtSigmaPipeline, PixArtTransformer2DModel
from torch import Tensor

from fewstep.methods.base import Sampler
from fewstep.methods.diffusion import Cond
from fewstep.orchestrator.families.autoencoder import decode_latents, encode_images
from fewstep.orchestrator.families.family import Family, LatentFamily
from fewstep.orchestrator.families.network import PipelineNetwork

TOKENS = 300  # that Sigma's T5 reads; Alpha's reads 120


class PixArtNetwork(PipelineNetwork[PixArtTransformer2DModel]):
    """PixArt's transformer as net(x_t, time, cond).

    `cond` holds "prompt" [b, tokens, width] and "mask" [b, tokens], 1 where a token counts; for a model that takes
    the picture's size also "size" [b, 2], height and width in pixels, and "aspect" [b, 1].
    """

    component = "transformer"
    lora_targets = ("to_q", "to_k", "to_v", "to_out.0", "ff.net.0.proj", "ff.net.2")

    @property
    def cond_shapes(self) -> Mapping[str, tuple[int, ...]]:
        """A prompt of T5's tokens with its mask, and the picture's size where the model takes it."""
        size = {"size": (2,), "aspect": (1,)} if self.model.use_additional_conditions else {}
        return {"prompt": (TOKENS, self.model.config["caption_channels"]), "mask": (TOKENS,), **size}

    def forward(self, x_t: Tensor, time: Tensor, cond: Cond) -> Tensor:
        """The noise, in the model's own dtype; a variance that it learned beside it is left out."""
        cond = {name: value.to(self.model.dtype) for name, value in cond.items()}
        output = self.model(
            x_t.to(self.model.dtype),
            encoder_hidden_states=cond["prompt"],
            timestep=time,
            added_cond_kwargs={"resolution": cond.get("size"), "aspect_ratio": cond.get("aspect")},
            encoder_attention_mask=cond["mask"],
        ).sample
        return output[:, : x_t.shape[1]]


PixArtPipeline = TypeVar("PixArtPipeline", PixArtAlphaPipeline, PixArtSigmaPipeline)
RAW = {"clean_caption": False, "use_resolution_binning": False}  # captions and sizes as they are


class PixArt(LatentFamily[PixArtPipeline]):
    """A transformer that reads T5, and may be conditioned on the picture's size."""

    max_tokens: ClassVar[int]

    @property
    def network(self) -> PixArtNetwork:
        """The transformer."""
        return PixArtNetwork(self.pipeline.transformer)

    @property
    def own_shape(self) -> tuple[int, int]:
        """The latents that the transformer was trained on."""
        return self.pipeline.transformer.config.in_channels, self.pipeline.transformer.config.sample_size

    @torch.inference_mode()
    def encode(self, conditions: Sequence[str]) -> dict[str, Tensor]:
        """`prompt` [n, tokens, width], `mask` [n, tokens], and for some models `size` [n, 2], `aspect` [n, 1]."""
        prompt, mask, _, _ = self.pipeline.encode_prompt(
            list(conditions),
            do_classifier_free_guidance=False,
            device=self.pipeline.device,
            max_sequence_length=self.max_tokens,
        )
        assert isinstance(prompt, Tensor) and isinstance(mask, Tensor)
        size = self.size_conditioning(self.latent_shape)
        return {
            "prompt": prompt,
            "mask": mask.float(),
            **{name: value.expand(len(conditions), -1) for name, value in size.items()},
        }

    def size_conditioning(self, latent_shape: Sequence[int]) -> dict[str, Tensor]:
        """`size` [1, 2], height and width, and `aspect` [1, 1]; nothing for a model that takes neither."""
        if not self.pipeline.transformer.use_additional_conditions:
            return {}
        size = torch.tensor([self.pixels(latent_shape)], dtype=torch.float32, device=self.pipeline.device)
        return {"size": size, "aspect": size[:, :1] / size[:, 1:]}

    def decode(self, latents: Tensor) -> Tensor:
        """Through the autoencoder."""
        return decode_latents(self.pipeline.vae, latents)

    def latents(self, images: Tensor, noise: Tensor) -> Tensor:
        """Drawn from what the autoencoder believes, as the teacher's own training data was."""
        return encode_images(self.pipeline.vae, images, noise)

    def call_arguments(
        self, conditions: Sequence[str], negative: str, steps: int, guidance_scale: float
    ) -> Mapping[str, object]:
        """Prompts and negative prompts."""
        prompts = {"prompt": list(conditions), "negative_prompt": [negative] * len(conditions), **RAW}
        return {**prompts, **self.size, "num_inference_steps": steps, "guidance_scale": guidance_scale}

    def unsupported_reason(self, sampler: Sampler) -> str:
        """Its pipeline takes a single step's x_0 from where only some schedulers have it."""
        if sampler.kind != "euler":
            return ""
        return "diffusers' PixArt pipelines cannot take one step on straight paths; choose lcm-lora, tcd, add or dmd"

    def save_lora(self, folder: Path) -> None:
        """For peft: PixArt's pipelines load no adapters."""
        Family.save_lora(self, folder)

    @staticmethod
    def usage_snippet(source: str, condition: str, steps: int) -> tuple[dict[str, object], str]:
        """Stock diffusers."""
        options = ", ".join(f"{name}={value}" for name, value in RAW.items())
        return {}, f"{condition!r}, {options}, num_inference_steps={steps}"


class PixArtAlpha(PixArt[PixArtAlphaPipeline]):
    """PixArt-alpha; its largest model is conditioned on the picture's size."""

    pipeline_class = PixArtAlphaPipeline
    max_tokens = 120


class PixArtSigma(PixArt[PixArtSigmaPipeline]):
    """PixArt-sigma, which reads longer prompts."""

    pipeline_class = PixArtSigmaPipeline
    max_tokens = 300
