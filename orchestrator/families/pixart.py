"""PixArt's transformer as a network that students are made of."""

from __future__ import annotations

from collections.abc import Mapping

from diffusers import PixArtTransformer2DModel
from torch import Tensor

from methods.diffusion import Cond
from orchestrator.network import PipelineNetwork

TOKENS = 300  # that Sigma's T5 reads; Alpha's reads 120


class PixArtNetwork(PipelineNetwork[PixArtTransformer2DModel]):
    """PixArt's transformer as net(x_t, time, cond).

    `cond` holds "prompt" [b, tokens, width] and "mask" [b, tokens], 1 where a token counts; for a model that is told
    the picture's size also "size" [b, 2], height and width in pixels, and "aspect" [b, 1].
    """

    component = "transformer"
    lora_targets = ("to_q", "to_k", "to_v", "to_out.0", "ff.net.0.proj", "ff.net.2")

    @property
    def cond_shapes(self) -> Mapping[str, tuple[int, ...]]:
        """As its configuration says."""
        told = {"size": (2,), "aspect": (1,)} if self.model.use_additional_conditions else {}
        return {"prompt": (TOKENS, self.model.config["caption_channels"]), "mask": (TOKENS,), **told}

    def forward(self, x_t: Tensor, time: Tensor, cond: Cond) -> Tensor:
        """The noise, in the model's own dtype; a variance that it learned beside it is left out."""
        told = {name: value.to(self.model.dtype) for name, value in cond.items()}
        added = {"resolution": told.get("size"), "aspect_ratio": told.get("aspect")}
        output = self.model(
            x_t.to(self.model.dtype),
            encoder_hidden_states=told["prompt"],
            timestep=time,
            added_cond_kwargs=added,
            encoder_attention_mask=told["mask"],
        ).sample
        return output[:, : x_t.shape[1]]
