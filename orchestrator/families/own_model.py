"""A teacher that is no diffusers pipeline: what `teacher.factory` in a recipe returns."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from diffusers import SchedulerMixin
from torch import Tensor, nn

from orchestrator.errors import BadInput


def nothing(conditions: Sequence[str]) -> dict[str, Tensor]:
    """`nothing` [n, 1], zeros: what a network is told that has no conditions. Raises BadInput for more."""
    for condition in conditions:
        if condition:
            raise BadInput(f"prompts: {condition!r} means nothing to an unconditional teacher; leave `prompts` out")
    return {"nothing": torch.zeros(len(conditions), 1)}


@dataclass(frozen=True)
class OwnModel:
    """Any network that denoises samples of any shape, with what is to be known of it.

    `network(x_t, time, cond)` answers with the shape of x_t [b, *shape]. `time` [b] counts as diffusers' networks are
    told it: 0 to 999, on straight paths 0 to 1000. The scheduler is diffusers', like DDPMScheduler or
    FlowMatchEulerDiscreteScheduler: its configuration says the noise levels and, as `prediction_type`, what the network
    answers with.
    """

    network: nn.Module
    scheduler: SchedulerMixin
    shape: tuple[int, ...]  # of one sample, without the batch
    encode: Callable[[Sequence[str]], dict[str, Tensor]] = nothing  # prompts to `cond`, [n, ...] each; "" is the null
    has_null: bool = False  # was it trained with the null condition, so that it can be guided?
    # Samples to images [n, 3, height, width] in -1..1; None where they are no pictures, and nothing is evaluated.
    decode: Callable[[Tensor], Tensor] | None = None
