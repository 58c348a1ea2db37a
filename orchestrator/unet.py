"""A diffusers UNet as a network that students are made of."""

from __future__ import annotations

import copy
from collections.abc import Sequence

from diffusers import UNet2DConditionModel
from diffusers.models.embeddings import get_timestep_embedding
from peft import LoraConfig
from torch import Tensor, nn

from methods.diffusion import Cond
from orchestrator.errors import BadInput

ADAPTER = "student"  # peft's name for the low-rank weights
# What LCM-LoRA adapts: attention, feed-forward, convolutions of the residual blocks, and the time's projections.
LORA_TARGETS = ("to_q", "to_k", "to_v", "to_out.0", "proj_in", "proj_out", "ff.net.0.proj", "ff.net.2")
LORA_TARGETS += ("conv1", "conv2", "conv_shortcut", "downsamplers.0.conv", "upsamplers.0.conv", "time_emb_proj")
GUIDANCE_EMBEDDING = 256  # of the guidance scale as an input, as LCM's authors have it


class UNetNetwork(nn.Module):
    """A diffusers UNet as net(x_t, time, cond).

    `cond` holds what it is conditioned on: "prompt" [b, tokens, width] or "class" [b, classes], one-hot; and, for a
    network with a guidance input, "guidance_scale" [b].
    """

    def __init__(self, unet: UNet2DConditionModel) -> None:
        super().__init__()
        self.unet = unet

    def forward(self, x_t: Tensor, time: Tensor, cond: Cond) -> Tensor:
        """The raw output of the UNet, in its own dtype."""
        embedded = None
        if "guidance_scale" in cond:
            # diffusers' pipelines call guidance_scale - 1 "w" and show the network 1000 w (arXiv:2310.04378, 4.1).
            w = (cond["guidance_scale"] - 1) * 1000
            embedded = get_timestep_embedding(w, GUIDANCE_EMBEDDING, downscale_freq_shift=1).to(self.unet.dtype)
        prompt = cond["prompt"].to(self.unet.dtype) if "prompt" in cond else None
        label = cond["class"].argmax(1) if "class" in cond else None
        return self.unet(x_t.to(self.unet.dtype), time, prompt, class_labels=label, timestep_cond=embedded).sample

    @property
    def middle_channels(self) -> int:
        """Of `middle`."""
        return self.unet.config["block_out_channels"][-1]

    def middle(self, x_t: Tensor, time: Tensor, cond: Cond) -> Tensor:
        """What the middle block answers. The rest is computed too: only the UNet itself knows how to come so far."""
        seen: list[Tensor] = []
        hook = self.unet.get_submodule("mid_block").register_forward_hook(lambda _, __, output: seen.append(output))
        self(x_t, time, cond)
        hook.remove()
        return seen[0]

    def copy(self) -> UNetNetwork:
        """Another of its kind with the same weights."""
        return copy.deepcopy(self)

    def with_lora(self, rank: int, targets: Sequence[str], *, shares_base: bool) -> UNetNetwork:
        """A copy whose trained weights are low-rank adapters that start at zero.

        The rest may be this network's own weights, not copies. Raises BadInput where no module has such a name.
        """
        shared = {id(weight): weight for weight in self.parameters()} if shares_base else {}
        network = copy.deepcopy(self, shared)
        network.requires_grad_(False)
        names = list(targets or LORA_TARGETS)
        try:
            network.unet.add_adapter(LoraConfig(r=rank, lora_alpha=rank, target_modules=names), ADAPTER)
        except ValueError as error:
            modules = (name.rpartition(".")[2] for name, _ in self.unet.named_modules())
            known = ", ".join(sorted({name for name in modules if name and not name.isdigit()}))
            asked = " or ".join(names)
            raise BadInput(f"method.lora_targets: no module of the teacher is called {asked}, but {known}") from error
        return network

    def with_guidance_input(self) -> UNetNetwork:
        """A copy that also embeds the guidance scale, and answers as this one does until it is trained.

        A network that embeds it already is copied as it is. diffusers initialises the embedding at random;
        zero makes the student the teacher at step 0.
        """
        if self.unet.config["time_cond_proj_dim"]:
            return self.copy()
        # diffusers notes in private keys which values were defaults, and would put those back.
        config = {name: value for name, value in self.unet.config.items() if not name.startswith("_")}
        config["time_cond_proj_dim"] = GUIDANCE_EMBEDDING
        unet = UNet2DConditionModel(**config)
        nn.Module.to(unet, device=self.unet.device, dtype=self.unet.dtype)
        missing, unexpected = unet.load_state_dict(self.unet.state_dict(), strict=False)
        assert not unexpected and missing == ["time_embedding.cond_proj.weight"]
        assert unet.time_embedding.cond_proj is not None
        nn.init.zeros_(unet.time_embedding.cond_proj.weight)
        return UNetNetwork(unet)
