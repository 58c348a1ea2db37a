"""Where a round keeps what it does not train: on every rank, cut up over them, in the host's memory, or nowhere."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from typing import cast

import torch
from diffusers.hooks import apply_group_offloading
from torch import nn

from methods.base import Frozen, Round, Trained
from methods.diffusion import Denoiser
from orchestrator.engine import EngineSpec, inference_engine
from orchestrator.network import PipelineNetwork
from orchestrator.recipe import Precision, Training
from orchestrator.teacher import Teacher


def placed(teacher: Denoiser, training: Training, dtype: Precision, device: torch.device) -> Denoiser:
    """A frozen denoiser where the recipe wants it, once everything that starts as it has been made.

    Cut up, each layer is gathered while it runs; in the host's memory, each block comes to the device while it runs.
    """
    net, placement = cast(PipelineNetwork, teacher.net), training.teacher_placement
    if placement == "shard":
        told = training.model_copy(update={"zero_stage": 3, "precision": dtype, "offload": "none"})
        return replace(teacher, net=cast(PipelineNetwork, inference_engine(net, EngineSpec(told, (0.0, 0.0), 1))))
    if placement == "offload":
        block = {"offload_type": "block_level", "num_blocks_per_group": 1}
        apply_group_offloading(net.model, device, **block, use_stream=device.type == "cuda")
    return teacher


def called(round: Round, teacher: Teacher) -> set[str]:
    """The parts of the teacher's pipeline that a round's losses call, or train adapters over."""
    nets = round.nets.values()
    is_based = round.online or any(isinstance(net, Trained) and net.lora.rank for net in nets)
    is_decoded = any(isinstance(net, Frozen) and net.role == "decoder" for net in nets)
    return {*([teacher.network.component] if is_based else []), *(["vae"] if is_decoded else [])}


def let_go(teacher: Teacher, kept: Collection[str]) -> None:
    """Free the weights of all other parts of its pipeline, like text encoders: prompts were read long ago."""
    for name, part in teacher.pipeline.components.items():
        if isinstance(part, nn.Module) and name not in kept:
            part.to("meta")
