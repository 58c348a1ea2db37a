"""Wraps FLUX's transformer as a network that students are made of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from diffusers import FluxPipeline, FluxTransformer2DModel
from torch import Tensor
from torch.nn import functional as F

from fewstep.methods.diffusion import Cond
from fewstep.orchestrator.errors import BadInput
from fewstep.orchestrator.families.family import PATCH, FlowFamily
from fewstep.orchestrator.families.network import PipelineNetwork

TOKENS = 512  # that T5 reads


class FluxNetwork(PipelineNetwork[FluxTransformer2DModel]):
    """FLUX's transformer as net(x_t, time, cond).

    `cond` holds "prompt" [b, tokens, width] and "pooled" [b, width]; for a model that embeds the guidance scale also
    "guidance_scale" [b], without which it is 1.
    """

    component = "transformer"
    lora_targets = (
        *("to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out"),
        *("ff.net.0.proj", "ff.net.2", "ff_context.net.0.proj", "ff_context.net.2", "proj_mlp", "proj_out"),
    )

    @property
    def has_guidance_input(self) -> bool:
        """True of FLUX.1-dev, which was distilled from a guided model."""
        return bool(self.model.config["guidance_embeds"])

    @property
    def cond_shapes(self) -> Mapping[str, tuple[int, ...]]:
        """A prompt of T5's tokens, and a pooled one of CLIP's."""
        config = self.model.config
        return {"prompt": (TOKENS, config["joint_attention_dim"]), "pooled": (config["pooled_projection_dim"],)}

    def forward(self, x_t: Tensor, time: Tensor, cond: Cond) -> Tensor:
        """The velocity, in the model's own dtype."""
        dtype, prompt = self.model.dtype, cond["prompt"].to(self.model.dtype)
        guidance = cond.get("guidance_scale", torch.ones_like(time)) if self.has_guidance_input else None
        tokens = self.model(
            pack(x_t.to(dtype)),
            encoder_hidden_states=prompt,
            pooled_projections=cond["pooled"].to(dtype),
            timestep=time.to(dtype) / 1000,  # rounded as the pipeline's times are
            guidance=guidance,
            img_ids=token_positions(x_t).to(dtype),
            txt_ids=torch.zeros(prompt.shape[1], 3, device=prompt.device, dtype=dtype),
        ).sample
        return unpack(tokens, x_t.shape[-2], x_t.shape[-1])


def pack(latents: Tensor) -> Tensor:
    """[b, channels, height, width] as tokens [b, height width / 4, 4 channels]."""
    return F.pixel_unshuffle(latents, PATCH).flatten(2).transpose(1, 2)


def unpack(tokens: Tensor, height: int, width: int) -> Tensor:
    """The inverse of `pack`."""
    return F.pixel_shuffle(tokens.transpose(1, 2).unflatten(2, (height // PATCH, width // PATCH)), PATCH)


def token_positions(latents: Tensor) -> Tensor:
    """Row and column of each token, [tokens, 3]; the first number is for other uses of the model."""
    rows, columns = (torch.arange(size // PATCH, device=latents.device) for size in latents.shape[-2:])
    grid = torch.cartesian_prod(rows, columns)
    return torch.cat([torch.zeros_like(grid[:, :1]), grid], 1)


class Flux(FlowFamily[FluxPipeline]):
    """A transformer with two text encoders: FLUX.1. Guidance, where it knows any, is an input."""

    pipeline_class = FluxPipeline
    tells_times = True

    @property
    def network(self) -> FluxNetwork:
        """The transformer."""
        return FluxNetwork(self.pipeline.transformer)

    @property
    def own_shape(self) -> tuple[int, int]:
        """The pipeline's default size."""
        return self.pipeline.transformer.config.in_channels // PATCH**2, self.pipeline.default_sample_size

    @torch.inference_mode()
    def encode(self, conditions: Sequence[str]) -> dict[str, Tensor]:
        """`prompt` [n, tokens, width] and `pooled` [n, width]."""
        texts = list(conditions)
        prompt, pooled, _ = self.pipeline.encode_prompt(texts, texts, device=self.pipeline.device)
        assert isinstance(prompt, Tensor) and isinstance(pooled, Tensor)
        return {"prompt": prompt, "pooled": pooled}

    def call_arguments(
        self, conditions: Sequence[str], negative: str, steps: int, guidance_scale: float
    ) -> Mapping[str, object]:
        """Prompts. Raises BadInput for a negative one."""
        if negative:
            raise BadInput(f"trajectories.negative_prompt: {negative!r} means nothing to FLUX; leave it out")
        return {
            "prompt": list(conditions),
            **self.size,
            "num_inference_steps": steps,
            "guidance_scale": guidance_scale,
        }

    def pack_latents(self, latents: Tensor) -> Tensor:
        """Latents as the tokens that the pipeline takes."""
        return pack(latents)
