"""Stable Diffusion 3's transformer as a network that students are made of."""

from __future__ import annotations

from collections.abc import Mapping

from diffusers import SD3Transformer2DModel
from torch import Tensor

from methods.diffusion import Cond
from orchestrator.network import PipelineNetwork

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
        """As its configuration says."""
        config = self.model.config
        return {"prompt": (TOKENS, config["joint_attention_dim"]), "pooled": (config["pooled_projection_dim"],)}

    def forward(self, x_t: Tensor, time: Tensor, cond: Cond) -> Tensor:
        """The velocity, in the model's own dtype."""
        dtype = self.model.dtype
        prompt, pooled = cond["prompt"].to(dtype), cond["pooled"].to(dtype)
        return self.model(x_t.to(dtype), prompt, pooled, time).sample
