"""Wraps a diffusers UNet as a network that students are made of."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TypeVar

from diffusers import UNet2DConditionModel, UNet2DModel
from diffusers.models.embeddings import get_timestep_embedding
from torch import Tensor, nn

from fewstep.methods.diffusion import Cond
from fewstep.orchestrator.families.network import PipelineNetwork

TOKENS = 77  # that CLIP reads
SIZES = 6  # numbers of Stable Diffusion XL's size condition
UP_PATH = ("up_blocks", "conv_norm_out", "conv_act", "conv_out")  # what both UNets do behind their middle block
GUIDANCE_EMBEDDING = 256  # of the guidance scale as an input, as LCM's authors have it


UNet = TypeVar("UNet", UNet2DConditionModel, UNet2DModel)


class AnyUNetNetwork(PipelineNetwork[UNet]):
    """What diffusers' UNets have in common."""

    component = "unet"
    # What LCM-LoRA adapts: attention, feed-forward, convolutions of the residual blocks, and the time's projections.
    lora_targets = (
        *("to_q", "to_k", "to_v", "to_out.0", "proj_in", "proj_out", "ff.net.0.proj", "ff.net.2"),
        *("conv1", "conv2", "conv_shortcut", "downsamplers.0.conv", "upsamplers.0.conv", "time_emb_proj"),
    )

    @property
    def middle_channels(self) -> int:
        """Channels of what `middle` returns."""
        return self.model.config["block_out_channels"][-1]

    def middle(self, x_t: Tensor, time: Tensor, cond: Cond) -> Tensor:
        """What the middle block answers; nothing behind it is computed."""
        with _without(self.model, UP_PATH):
            return self.with_middle(x_t, time, cond)[1]

    def with_middle(self, x_t: Tensor, time: Tensor, cond: Cond) -> tuple[Tensor, Tensor]:
        """The raw output of the UNet, and what its middle block answered on the way."""
        outputs: list[Tensor] = []

        def keep(block: nn.Module, inputs: object, output: Tensor) -> None:
            outputs.append(output)

        hook = self.model.get_submodule("mid_block").register_forward_hook(keep)
        output = self(x_t, time, cond)
        hook.remove()
        return output, outputs[0]


@contextmanager
def _without(model: nn.Module, names: Sequence[str]) -> Iterator[None]:
    """Let a model do nothing in place of some of its parts; an iteration over one comes to an end at once."""
    children = [(name, child) for name, child in model.named_children() if name in names]
    try:
        for name, _ in children:
            setattr(model, name, nn.Sequential())
        yield
    finally:
        for name, child in children:
            setattr(model, name, child)


class PlainUNetNetwork(AnyUNetNetwork[UNet2DModel]):
    """A UNet by class or unconditional as net(x_t, time, cond); `cond` may hold "class" [b, classes], one-hot."""

    @property
    def cond_shapes(self) -> Mapping[str, tuple[int, ...]]:
        """A class, or nothing."""
        classes = self.model.config["num_class_embeds"]
        return {"class": (classes,)} if classes else {}

    def forward(self, x_t: Tensor, time: Tensor, cond: Cond) -> Tensor:
        """The raw output of the UNet, in its own dtype."""
        label = cond["class"].argmax(1) if "class" in cond else None
        return self.model(x_t.to(self.model.dtype), time, label).sample


class UNetNetwork(AnyUNetNetwork[UNet2DConditionModel]):
    """A diffusers UNet as net(x_t, time, cond).

    `cond` holds what it is conditioned on: "prompt" [b, tokens, width], with "pooled" [b, width] and "size" [b, 6] for
    Stable Diffusion XL, or "class" [b, classes], one-hot; and, for a network with a guidance input,
    "guidance_scale" [b].
    """

    @property
    def can_take_guidance_input(self) -> bool:
        """Always: diffusers adds a projection of the guidance scale to that of the time."""
        return True

    @property
    def cond_shapes(self) -> Mapping[str, tuple[int, ...]]:
        """A prompt, a pooled prompt with a size, or a class, as the configuration says."""
        config, shapes = self.model.config, dict[str, tuple[int, ...]]()
        if any("CrossAttn" in block for block in config["down_block_types"]):
            shapes["prompt"] = (TOKENS, config["cross_attention_dim"])
        if config["addition_embed_type"] == "text_time":
            size_width = SIZES * config["addition_time_embed_dim"]
            shapes |= {"pooled": (config["projection_class_embeddings_input_dim"] - size_width,), "size": (SIZES,)}
        if config["num_class_embeds"]:
            shapes["class"] = (config["num_class_embeds"],)
        return shapes

    def forward(self, x_t: Tensor, time: Tensor, cond: Cond) -> Tensor:
        """The raw output of the UNet, in its own dtype."""
        guidance_embedding = None
        if "guidance_scale" in cond:
            # diffusers' pipelines call guidance_scale - 1 "w" and show the network 1000 w (arXiv:2310.04378, 4.1).
            w = (cond["guidance_scale"] - 1) * 1000
            guidance_embedding = get_timestep_embedding(w, GUIDANCE_EMBEDDING, downscale_freq_shift=1)
            guidance_embedding = guidance_embedding.to(self.model.dtype)
        prompt = cond["prompt"].to(self.model.dtype) if "prompt" in cond else None
        label = cond["class"].argmax(1) if "class" in cond else None
        added = {"text_embeds": cond["pooled"], "time_ids": cond["size"]} if "pooled" in cond else None
        return self.model(
            x_t.to(self.model.dtype),
            time,
            prompt,
            class_labels=label,
            timestep_cond=guidance_embedding,
            added_cond_kwargs=added and {name: value.to(self.model.dtype) for name, value in added.items()},
        ).sample

    @property
    def guidance_modules(self) -> tuple[str, ...]:
        """The projection of the guidance scale's embedding."""
        return ("cond_proj",) if self.model.config["time_cond_proj_dim"] else ()

    def with_guidance_input(self, *, shares_weights: bool = False) -> UNetNetwork:
        """A copy that also embeds the guidance scale, and answers as this one does until it is trained.

        A network that embeds it already is copied as it is. diffusers initialises the embedding at random;
        zero makes the student the teacher at step 0.
        """
        if self.model.config["time_cond_proj_dim"]:
            return self.copy(shares_weights=shares_weights)
        # diffusers notes in private keys which values were defaults, and would put those back.
        config = {name: value for name, value in self.model.config.items() if not name.startswith("_")}
        config["time_cond_proj_dim"] = GUIDANCE_EMBEDDING
        with self.model.device:
            unet = UNet2DConditionModel(**config)
        nn.Module.to(unet, device=self.model.device, dtype=self.model.dtype)
        state = self.model.state_dict(keep_vars=shares_weights)
        missing, unexpected = unet.load_state_dict(state, strict=False, assign=shares_weights)
        assert not unexpected and missing == ["time_embedding.cond_proj.weight"]
        assert unet.time_embedding.cond_proj is not None
        nn.init.zeros_(unet.time_embedding.cond_proj.weight)
        return UNetNetwork(unet)
