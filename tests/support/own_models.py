"""Teachers that are no diffusers pipelines: points of two dimensions, and a video transformer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from diffusers import DDPMScheduler, FlowMatchEulerDiscreteScheduler, WanTransformer3DModel
from torch import Tensor, nn
from torch.nn import functional as F

from fewstep.orchestrator.families.custom import OwnModel

CLASSES = ("left", "right")
VIDEO = (4, 3, 4, 4)  # channels, frames, height, width


class Points(nn.Module):
    """Tells the noise in points [b, 2] of two classes, or none."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(2 + 1 + len(CLASSES), 32), nn.SiLU(), nn.Linear(32, 2))

    def forward(self, x_t: Tensor, time: Tensor, cond: dict[str, Tensor]) -> Tensor:
        return self.layers(torch.cat([x_t, time[:, None].to(x_t) / 1000, cond["side"]], 1))


def sides(prompts: Sequence[str]) -> dict[str, Tensor]:
    """One-hot; all zeros is no side."""
    known = torch.tensor([CLASSES.index(prompt) if prompt else len(CLASSES) for prompt in prompts])
    return {"side": F.one_hot(known, len(CLASSES) + 1)[:, : len(CLASSES)].float()}


def points() -> OwnModel:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return OwnModel(Points(), DDPMScheduler(beta_schedule="squaredcos_cap_v2"), (2,), sides, has_null=True)


class Video(nn.Module):
    """diffusers' smallest Wan, which answers with the velocity of straight paths."""

    def __init__(self) -> None:
        super().__init__()
        self.transformer = WanTransformer3DModel(
            patch_size=(1, 2, 2),
            num_attention_heads=2,
            attention_head_dim=12,
            in_channels=VIDEO[0],
            out_channels=VIDEO[0],
            text_dim=16,
            freq_dim=16,
            ffn_dim=32,
            num_layers=1,
        )

    def forward(self, x_t: Tensor, time: Tensor, cond: dict[str, Tensor]) -> Tensor:
        return self.transformer(x_t, time, cond["prompt"]).sample


def letters(prompts: Sequence[str]) -> dict[str, Tensor]:
    """A token for each letter, `prompt` [n, 8, 16]."""
    codes = torch.tensor([[ord(letter) % 16 for letter in prompt.ljust(8)[:8]] for prompt in prompts])
    return {"prompt": F.one_hot(codes, 16).float()}


def video() -> OwnModel:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return OwnModel(Video(), FlowMatchEulerDiscreteScheduler(shift=3.0), VIDEO, letters, has_null=True)


def nonsense() -> nn.Module:
    return Points()


def seen_points() -> OwnModel:
    """With one row of pixels as their picture."""
    return replace(points(), decode=lambda x: x[:, None, None, :].expand(-1, 3, 2, -1))


def clamped_points() -> OwnModel:
    """As many would write it."""
    return replace(points(), decode=lambda x: x[:, None, None, :].expand(-1, 3, 2, -1).clamp(-1, 1))


def detached_points() -> OwnModel:
    return replace(points(), decode=lambda x: x.detach()[:, None, None, :].expand(-1, 3, 2, -1))


def flat() -> OwnModel:
    return replace(points(), encode=lambda prompts: {"side": torch.zeros(len(prompts))})
