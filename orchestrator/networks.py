"""A round's networks: built from the teacher, given engines, and frozen in turn."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Protocol, cast

import torch
from torch import Tensor, nn

from methods.base import Averaged, Critic, Round, Trained
from methods.diffusion import Denoiser, RectifiedFlow
from orchestrator.averages import Average
from orchestrator.engine import Engine, EngineSpec, inference_engine
from orchestrator.errors import BadInput


class TakesGuidance(Protocol):
    """A network that can be given the guidance scale as an input."""

    def with_guidance_input(self) -> nn.Module:
        """A copy that embeds it, and answers as before until it is trained."""
        ...


@dataclass
class Networks:
    """What losses call (`nets`), what is trained (`engines`), and what follows it (`averages`)."""

    nets: dict[str, Denoiser | nn.Module] = field(default_factory=dict)
    engines: dict[str, Engine] = field(default_factory=dict)
    averages: dict[str, Average] = field(default_factory=dict)
    of: dict[str, str] = field(default_factory=dict)  # average -> the network it follows

    @contextmanager
    def only(self, name: str) -> Iterator[Engine]:
        """Let gradients reach one network's weights; they still flow through the others to their inputs."""
        trained = {other: self._trained[other] for other in self.engines}
        for other, weights in trained.items():
            for weight in weights:
                weight.requires_grad_(other == name)
        yield self.engines[name]
        for weights in trained.values():
            for weight in weights:
                weight.requires_grad_(True)

    def __post_init__(self) -> None:
        self._trained: dict[str, list[nn.Parameter]] = {}

    def add(self, name: str, engine: Engine, net: Denoiser | nn.Module) -> None:
        """A network with its engine."""
        self.engines[name], self.nets[name] = engine, net
        self._trained[name] = [weight for weight in engine.module.parameters() if weight.requires_grad]


def student_network(network: nn.Module, spec: Trained) -> nn.Module:
    """A trainable copy of a network, with the inputs that the method asks for."""
    if spec.guidance_input:
        return cast(TakesGuidance, network).with_guidance_input()
    return copy.deepcopy(network)


def meaning(net: nn.Module, spec: Trained, teacher: Denoiser) -> Denoiser:
    """The network as a denoiser: with the teacher's schedule and prediction, or re-purposed."""
    schedules = {"": teacher.schedule, "flow": RectifiedFlow()}
    if spec.schedule not in schedules:
        raise BadInput(f"method: a student on the schedule {spec.schedule!r} cannot be trained yet")
    return Denoiser(net, schedules[spec.schedule], spec.prediction or teacher.prediction)


def build(
    round: Round,
    teacher: Denoiser,
    start: nn.Module,
    specs: Callable[[Trained | Critic], EngineSpec],
    make_engine: Callable[[nn.Module, EngineSpec], Engine],
) -> Networks:
    """The round's networks. `start` is what the student begins as, already with its inputs.

    Averages are copied before the engines partition their sources; at ZeRO-3 they are partitioned themselves.
    """
    networks = Networks()
    if round.online:
        networks.nets["teacher"] = teacher
    for name, net in round.nets.items():
        if isinstance(net, Averaged):
            continue
        if not isinstance(net, Trained):
            raise BadInput(f"method: the network {name!r} ({type(net).__name__}) cannot be trained yet")
        module = start if net.init == "student" else student_network(cast(nn.Module, teacher.net), net)
        module.requires_grad_(True).train()
        followers = {other: a for other, a in round.nets.items() if isinstance(a, Averaged) and a.of == name}
        averages = {other: Average(module, average.decay) for other, average in followers.items()}
        spec = specs(net)
        engine = make_engine(module, spec)
        networks.add(name, engine, meaning(engine.module, net, teacher))
        partitioned = any(hasattr(weight, "ds_tensor") for weight in engine.module.parameters())
        for other, average in averages.items():
            if partitioned:
                average.module = inference_engine(average.module, spec)
            average.attach(engine, partitioned=partitioned)
            networks.averages[other], networks.of[other] = average, name
            networks.nets[other] = meaning(average.module, net, teacher)
    return networks


def full_state(networks: Networks, name: str) -> dict[str, Tensor]:
    """A network's whole float32 weights on the CPU, gathered from all ranks; every rank calls it."""
    if name in networks.averages:
        average = networks.averages[name]
        pairs = zip(average.module.named_parameters(), average.values, strict=True)
        return {key: gathered(value, weight) for (key, weight), value in pairs}
    engine = networks.engines[name]
    return {key: gathered(engine.master(weight), weight) for key, weight in engine.module.named_parameters()}


def gathered(value: Tensor, weight: nn.Parameter) -> Tensor:
    """The whole of a weight whose local part is `value`."""
    shape = getattr(weight, "ds_shape", None)  # set by DeepSpeed where it partitions the weight
    if shape is None:
        return value.detach().float().cpu().clone()
    parts = [torch.empty_like(value) for _ in range(torch.distributed.get_world_size())]
    torch.distributed.all_gather(parts, value.contiguous())
    return torch.cat(parts)[: shape.numel()].view(shape).cpu()


def trained_of(round: Round, name: str) -> Trained:
    """The specification behind a network of a round: its own, or that of what it averages."""
    net = round.nets[name]
    while isinstance(net, Averaged):
        net = round.nets[net.of]
    assert isinstance(net, Trained)
    return net
