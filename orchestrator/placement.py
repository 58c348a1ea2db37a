"""Where a round keeps its teacher: on every rank, cut up over the ranks, or in the host's memory."""

from __future__ import annotations

from dataclasses import replace
from typing import cast

import torch
from diffusers.hooks import apply_group_offloading
from torch import nn

from methods.diffusion import Denoiser
from orchestrator.engine import EngineSpec, inference_engine
from orchestrator.network import PipelineNetwork
from orchestrator.recipe import Precision, Training


def placed(teacher: Denoiser, training: Training, dtype: Precision, device: torch.device) -> Denoiser:
    """A frozen denoiser where the recipe wants it, once everything that starts as it has been made.

    Cut up, each layer is gathered while it runs; in the host's memory, each block comes to the device while it runs.
    """
    net, placement = cast(PipelineNetwork, teacher.net), training.teacher_placement
    if placement == "shard":
        told = training.model_copy(update={"zero_stage": 3, "precision": dtype, "offload": "none"})
        sharded = inference_engine(net, EngineSpec(told, (0.0, 0.0), 1))
        return replace(teacher, net=cast(PipelineNetwork, sharded))
    if placement == "offload":
        is_cuda = device.type == "cuda"
        apply_group_offloading(
            net.model, device, offload_type="block_level", num_blocks_per_group=1, use_stream=is_cuda
        )
    return teacher


def spare(parts: dict[str, object], kept: set[str]) -> None:
    """Move what training never calls, like text encoders, off the device."""
    for name, part in parts.items():
        if isinstance(part, nn.Module) and name not in kept:
            part.cpu()
