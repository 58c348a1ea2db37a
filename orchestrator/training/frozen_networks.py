"""Builds the networks that losses call and nobody trains: decoder, feature maps, perceptual distance, the teacher."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace

import torch
from diffusers.hooks import apply_group_offloading
from torch import Tensor, nn

from fewstep.methods.base import Frozen, Round, Trained
from fewstep.methods.diffusion import Denoiser
from fewstep.methods.feature_discriminator import pooled
from fewstep.orchestrator.engines.deepspeed import inference_engine
from fewstep.orchestrator.engines.engine import EngineSpec
from fewstep.orchestrator.families.family import Family
from fewstep.orchestrator.families.network import PipelineNetwork
from fewstep.orchestrator.features.feature_networks import FeatureNetwork, layered_network
from fewstep.orchestrator.features.perceptual import perceptual_distance
from fewstep.orchestrator.recipe.teacher import Precision
from fewstep.orchestrator.recipe.training import Training
from fewstep.orchestrator.students.student import module_of
from fewstep.orchestrator.teachers.teacher import Teacher


class Decoder(nn.Module):
    """Latents to images [b, 3, height, width] in -1..1, through the teacher's own decoder where it has one."""

    def __init__(self, family: Family) -> None:
        super().__init__()
        self._family = family

    def forward(self, latents: Tensor) -> Tensor:
        """Decode the latents; gradients pass."""
        return self._family.decode(latents)


class Maps(nn.Module):
    """Images in -1..1 to the maps of a feature network's layers."""

    def __init__(self, features: FeatureNetwork, cond_width: int) -> None:
        super().__init__()
        self.network, self._features = features.network, features
        self.channels, self.cond_width = features.channels, cond_width

    def forward(self, images: Tensor) -> list[Tensor]:
        """The maps of the images, one per layer."""
        return self._features.maps((images + 1) / 2)


def frozen_network(net: Frozen, teacher: Teacher, features: str) -> nn.Module:
    """The network for a role. Raises BadInput where the feature network is not there."""
    if net.role == "decoder":
        return Decoder(teacher.family)
    if net.role == "perceptual":
        return perceptual_distance(features, teacher.device)
    return Maps(layered_network(features, teacher.device), pooled(teacher.encode([""])).shape[1])


def place_teacher(teacher: Denoiser, training: Training, dtype: Precision, device: torch.device) -> Denoiser:
    """A frozen denoiser where the recipe wants it, once everything that starts as it has been made.

    Cut up, each layer is gathered while it runs; in the host's memory, each block comes to the device while it runs.
    """
    if training.teacher_placement == "shard":
        sharding = training.model_copy(update={"zero_stage": 3, "precision": dtype, "offload": "none"})
        return replace(teacher, net=inference_engine(module_of(teacher), EngineSpec(sharding, (0.0, 0.0), 1)))
    if training.teacher_placement == "offload":
        assert isinstance(teacher.net, PipelineNetwork)
        block = {"offload_type": "block_level", "num_blocks_per_group": 1}
        apply_group_offloading(teacher.net.model, device, **block, use_stream=device.type == "cuda")
    return teacher


def parts_used(round: Round, teacher: Teacher) -> set[str]:
    """The parts of the teacher's pipeline that a round's losses call, or train adapters over."""
    nets = round.nets.values()
    is_based = round.online or any(isinstance(net, Trained) and net.lora.rank for net in nets)
    is_decoded = any(isinstance(net, Frozen) and net.role == "decoder" for net in nets)
    return {*([teacher.network.component] if is_based else []), *(["vae"] if is_decoded else [])}


def release_unused(teacher: Teacher, components: Collection[str]) -> None:
    """Free the weights of all other components of its pipeline, like text encoders: prompts were read long ago."""
    for name, component in teacher.pipeline.components.items():
        if isinstance(component, nn.Module) and name not in components:
            component.to("meta")
