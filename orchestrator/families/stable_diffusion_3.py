"""Wraps Stable Diffusion 3's transformer as a network that students are made of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from diffusers import SD3Transformer2DModel, StableDiffusion3Pipeline
from torch import Tensor

from fewstep.methods.diffusion import Cond
from fewstep.orchestrator.families.family import FlowFamily
from fewstep.orchestrator.families.network import PipelineNetwork

TOKENS = 77 + 256  # that CLIP and T5 read


class MMDiTNetwork(PipelineNetwork[SD3Transformer2DModel]):
    """SD3's transformer as net(x_t, time, cond); `cond` holds "prompt" [b, tokens, width] and "pooled" [b, width]."""

    component = "transformer"
    lora_targets = (
        *("to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out"),
        *("ff.net.0.proj", "ff.net.2", "ff_context.net.0.proj", "ff_context.net.2"),
    )

    @property
    def cond_shapes(self) -> Mapping[str, tuple[int, ...]]:
        """A prompt of CLIP's and T5's tokens, and a pooled one."""
        config = self.model.config
        return {"prompt": (TOKENS, config["joint_attention_dim"]), "pooled": (config["pooled_projection_dim"],)}

    def forward(self, x_t: Tensor, time: Tensor, cond: Cond) -> Tensor:
        """The velocity, in the model's own dtype."""
        dtype = self.model.dtype
        prompt, pooled = cond["prompt"].to(dtype), cond["pooled"].to(dtype)
        return self.model(x_t.to(dtype), prompt, pooled, time).sample


class StableDiffusion3(FlowFamily[StableDiffusion3Pipeline]):
    """A transformer on straight paths, with two or three text encoders: Stable Diffusion 3 and 3.5."""

    pipeline_class = StableDiffusion3Pipeline

    @property
    def network(self) -> MMDiTNetwork:
        """The transformer."""
        return MMDiTNetwork(self.pipeline.transformer)

    @property
    def own_shape(self) -> tuple[int, int]:
        """The latents that the transformer was trained on."""
        config = self.pipeline.transformer.config
        return config.in_channels, config.sample_size

    @torch.inference_mode()
    def encode(self, conditions: Sequence[str]) -> dict[str, Tensor]:
        """`prompt` [n, tokens, width] and `pooled` [n, width]."""
        texts, device = list(conditions), self.pipeline.device
        prompt, _, pooled, _ = self.pipeline.encode_prompt(
            texts, texts, texts, device=device, do_classifier_free_guidance=False
        )
        assert isinstance(prompt, Tensor) and isinstance(pooled, Tensor)
        return {"prompt": prompt, "pooled": pooled}

    def call_arguments(
        self, conditions: Sequence[str], negative: str, steps: int, guidance_scale: float
    ) -> Mapping[str, object]:
        """Prompts."""
        return {
            "prompt": list(conditions),
            "negative_prompt": [negative] * len(conditions),
            **self.size,
            "num_inference_steps": steps,
            "guidance_scale": guidance_scale,
        }
