"""Makes the networks of a round from the teacher's, and says what their outputs mean."""

from __future__ import annotations

import copy
from typing import Protocol, Self, TypeVar, runtime_checkable

from torch import nn

from fewstep.methods.base import Averaged, LoRA, Round, Trained
from fewstep.methods.diffusion import Denoiser
from fewstep.methods.schedules import DiscreteVP, RectifiedFlow, Schedule

Network = TypeVar("Network", bound=nn.Module)


@runtime_checkable
class Distillable(Protocol):
    """A network that students of every kind can be made of."""

    def with_guidance_input(self, *, shares_weights: bool = False) -> Self:
        """A copy that embeds the guidance scale, and answers as before until it is trained."""
        ...

    def with_lora(self, lora: LoRA) -> Self:
        """Another over the same weights that trains low-rank adapters alone."""
        ...

    def recompute(self) -> None:
        """Keep the inputs of blocks alone, and compute the rest again on the way back."""
        ...


def student_network(network: Network, spec: Trained) -> Network:
    """What a network of a round begins as: with the inputs that the method asks for, its trained weights in float32.

    A copy, or low-rank adapters of its own over the very weights of `network`.
    """
    if not spec.lora.rank and not spec.guidance_input:
        return copy.deepcopy(network).float().requires_grad_(True)
    assert isinstance(network, Distillable)
    if not spec.lora.rank:
        return network.with_guidance_input().float().requires_grad_(True)
    return (network.with_guidance_input(shares_weights=True) if spec.guidance_input else network).with_lora(spec.lora)


def module_of(denoiser: Denoiser) -> nn.Module:
    """The network of a denoiser, which may be any function, as the module that it is here."""
    assert isinstance(denoiser.net, nn.Module)
    return denoiser.net


def as_denoiser(net: nn.Module, spec: Trained, base: Denoiser) -> Denoiser:
    """The network as a denoiser: with the base model's schedule and prediction, or re-purposed.

    Raises ValueError for a time to start at that the base model's schedule does not have.
    """
    schedule = RectifiedFlow() if spec.schedule == "flow" else base.schedule
    if spec.start_time:
        schedule = until(schedule, spec.start_time)
    return Denoiser(net, schedule, spec.prediction or base.prediction)


def until(schedule: Schedule, start_time: int) -> DiscreteVP:
    """The schedule without the times after one. Raises ValueError where it does not count its times so far."""
    if not isinstance(schedule, DiscreteVP):
        raise ValueError("start_time counts times of a table of noise levels; straight paths have none, leave it out")
    times = len(schedule.alphas_cumprod)
    if start_time >= times:
        raise ValueError(f"start_time must be below the teacher's {times} times, got {start_time}")
    return DiscreteVP(schedule.alphas_cumprod[: start_time + 1])


def trained_of(round: Round, name: str) -> Trained:
    """The specification behind a network of a round: its own, or that of what it averages."""
    net = round.nets[name]
    while isinstance(net, Averaged):
        net = round.nets[net.of]
    assert isinstance(net, Trained)
    return net
