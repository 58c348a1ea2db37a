"""Wraps the model of a diffusers pipeline as a network that students are made of."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Mapping
from itertools import chain
from typing import ClassVar, Generic, Self, TypeVar

import torch
from diffusers import (
    DiTTransformer2DModel,
    FluxTransformer2DModel,
    PixArtTransformer2DModel,
    SD3Transformer2DModel,
    UNet2DConditionModel,
    UNet2DModel,
)
from diffusers.utils import recurse_remove_peft_layers
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn

from fewstep.methods.base import LoRA
from fewstep.methods.diffusion import Cond
from fewstep.orchestrator.errors import BadInput
from fewstep.orchestrator.pipelines.own import OwnNetwork

TORCH_DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
ADAPTER = "student"  # peft's name for the low-rank weights
Model = TypeVar(
    "Model",
    UNet2DConditionModel,
    UNet2DModel,
    SD3Transformer2DModel,
    FluxTransformer2DModel,
    PixArtTransformer2DModel,
    DiTTransformer2DModel,
    OwnNetwork,
)


def is_adapter(name: str) -> bool:
    """Is a weight of this name one of the low-rank adapters?"""
    return f".{ADAPTER}." in name


class PipelineNetwork(nn.Module, ABC, Generic[Model]):
    """The model that a pipeline denoises with, as net(x_t, time, cond)."""

    component: ClassVar[str]  # what pipelines call it
    lora_targets: tuple[str, ...]  # how the names of modules end that low-rank adapters are for

    def __init__(self, model: Model) -> None:
        super().__init__()
        self.model = model

    @property
    def has_guidance_input(self) -> bool:
        """Is the guidance scale an input of the model as it is?"""
        return False

    @property
    def can_take_guidance_input(self) -> bool:
        """Has `with_guidance_input` an answer?"""
        return self.has_guidance_input

    @property
    def cond_shapes(self) -> Mapping[str, tuple[int, ...]]:
        """The shape of one row of each condition, for the longest prompts."""
        return {}

    @abstractmethod
    def forward(self, x_t: Tensor, time: Tensor, cond: Cond) -> Tensor:
        """The raw output of the model, in its own dtype."""

    def copy(self, *, shares_weights: bool = False) -> Self:
        """Another of its kind with the same weights: copies of them, or these very ones."""
        shared = chain(self.parameters(), self.buffers()) if shares_weights else ()
        return copy.deepcopy(self, {id(tensor): tensor for tensor in shared})

    def with_lora(self, lora: LoRA) -> Self:
        """Another of its kind whose trained weights are low-rank adapters; all else is this network's own, not a copy.

        The adapters are float32 and start at zero, or as copies of those that this network has. Each network keeps its
        own, so that calling one changes nothing in another. Raises BadInput where no module has such a name.
        """
        whole = chain(self.named_parameters(), self.named_buffers())
        network = copy.deepcopy(self, {id(tensor): tensor for name, tensor in whole if not is_adapter(name)})
        if not any(is_adapter(name) for name, _ in self.named_parameters()):
            self._add_adapter(network.model, lora)
        for name, weight in network.named_parameters():
            weight.requires_grad_(is_adapter(name))
            if is_adapter(name):
                weight.data = weight.data.float()
        return network

    def _add_adapter(self, model: Model, lora: LoRA) -> None:
        names = [*(lora.targets or self.lora_targets), *self.guidance_modules]
        config = LoraConfig(r=lora.rank, lora_alpha=lora.alpha or lora.rank, target_modules=names)  # pyright: ignore[reportArgumentType]
        try:
            with model.device:
                # As diffusers' own add_adapter, which not all of its models have.
                inject_adapter_in_model(config, model, ADAPTER)
        except ValueError as error:
            modules = (name.rpartition(".")[2] for name, _ in self.model.named_modules())
            known = ", ".join(sorted({name for name in modules if name and not name.isdigit()}))
            targets = " or ".join(names)
            raise BadInput(f"method.lora_targets: no module of the teacher is called {targets}, but {known}") from error

    def recompute(self) -> None:
        """Keep the inputs of blocks alone while it is trained, and compute the rest again on the way back."""
        self.model.enable_gradient_checkpointing()

    def merge_lora(self) -> None:
        """Add the adapters to the weights that they adapt, and take them away."""
        for module in self.model.modules():
            if isinstance(module, BaseTunerLayer):
                module.merge(adapter_names=[ADAPTER])
        recurse_remove_peft_layers(self.model)
        del self.model.peft_config

    @property
    def guidance_modules(self) -> tuple[str, ...]:
        """Names of the modules that `with_guidance_input` added, which adapters have to train too."""
        return ()

    def with_guidance_input(self, *, shares_weights: bool = False) -> Self:
        """A copy that also embeds the guidance scale, and answers as this one does until it is trained.

        Its other weights may be this network's own. Raises BadInput for a model that has no place for it.
        """
        if self.has_guidance_input:
            return self.copy(shares_weights=shares_weights)
        raise BadInput(
            f"method: a {type(self.model).__name__} cannot take the guidance scale as an input; choose a method that "
            "keeps guidance inside the student, like lcm-lora, dmd or progressive"
        )

    @property
    def middle_channels(self) -> int:
        """The channels of its middle features. Raises BadInput for a model that does not show them."""
        raise BadInput(
            f"method.adversarial_weight: a {type(self.model).__name__} shows nothing of its middle, which the "
            "discriminator looks at; set it to 0"
        )
