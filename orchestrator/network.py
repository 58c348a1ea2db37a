"""The model of a diffusers pipeline as a network that students are made of."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar, Generic, Self, TypeVar

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

from methods.diffusion import Cond
from orchestrator.errors import BadInput

ADAPTER = "student"  # peft's name for the low-rank weights
Model = TypeVar(
    "Model",
    UNet2DConditionModel,
    UNet2DModel,
    SD3Transformer2DModel,
    FluxTransformer2DModel,
    PixArtTransformer2DModel,
    DiTTransformer2DModel,
)


class PipelineNetwork(nn.Module, ABC, Generic[Model]):
    """The model that a pipeline denoises with, as net(x_t, time, cond)."""

    component: ClassVar[str]  # what pipelines call it
    lora_targets: ClassVar[tuple[str, ...]]  # how the names of modules end that low-rank adapters are for

    def __init__(self, model: Model) -> None:
        super().__init__()
        self.model = model

    @property
    def is_told_guidance(self) -> bool:
        """Is the guidance scale an input of the model as it is?"""
        return False

    @property
    def can_be_told_guidance(self) -> bool:
        """Has `with_guidance_input` an answer?"""
        return self.is_told_guidance

    @abstractmethod
    def forward(self, x_t: Tensor, time: Tensor, cond: Cond) -> Tensor:
        """The raw output of the model, in its own dtype."""

    def copy(self) -> Self:
        """Another of its kind with the same weights."""
        return copy.deepcopy(self)

    def with_lora(self, rank: int, targets: Sequence[str], *, shares_base: bool) -> Self:
        """A copy whose trained weights are low-rank adapters that start at zero.

        The rest may be this network's own weights, not copies. Raises BadInput where no module has such a name.
        """
        shared = {id(weight): weight for weight in self.parameters()} if shares_base else {}
        network = copy.deepcopy(self, shared)
        network.requires_grad_(False)
        names = list(targets or self.lora_targets)
        try:
            # As diffusers' own add_adapter, which not all of its models have.
            inject_adapter_in_model(LoraConfig(r=rank, lora_alpha=rank, target_modules=names), network.model, ADAPTER)
        except ValueError as error:
            modules = (name.rpartition(".")[2] for name, _ in self.model.named_modules())
            known = ", ".join(sorted({name for name in modules if name and not name.isdigit()}))
            asked = " or ".join(names)
            raise BadInput(f"method.lora_targets: no module of the teacher is called {asked}, but {known}") from error
        return network

    def merge_lora(self) -> None:
        """Add the adapters to the weights that they adapt, and take them away."""
        for module in self.model.modules():
            if isinstance(module, BaseTunerLayer):
                module.merge(adapter_names=[ADAPTER])
        recurse_remove_peft_layers(self.model)
        del self.model.peft_config

    def with_guidance_input(self) -> Self:
        """A copy that also embeds the guidance scale, and answers as this one does until it is trained.

        Raises BadInput for a model that has no place for it.
        """
        if self.is_told_guidance:
            return self.copy()
        raise BadInput(
            f"method: a {type(self.model).__name__} cannot take the guidance scale as an input; choose a method that "
            "keeps guidance inside the student, like lcm-lora, dmd or progressive"
        )

    @property
    def middle_channels(self) -> int:
        """Of what it shows of its middle. Raises BadInput for a model that shows nothing of it."""
        raise BadInput(
            f"method.adversarial_weight: a {type(self.model).__name__} shows nothing of its middle, which the "
            "discriminator looks at; set it to 0"
        )
