"""A round's networks: built from the teacher, given engines, and frozen in turn."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Protocol, cast

import torch
from diffusers.schedulers.scheduling_ddim import rescale_zero_terminal_snr
from torch import Tensor, nn

from methods.base import Averaged, Critic, Frozen, LoRA, Round, Trained
from methods.diffusion import EDM, Denoiser, DiscreteVP, RectifiedFlow, Schedule
from orchestrator.averages import Average, frozen_copy
from orchestrator.engine import Engine, EngineSpec, inference_engine, trained_weights
from orchestrator.partition import Sharded


class Distillable(Protocol):
    """A network that students can be made of."""

    def with_guidance_input(self, *, shares_weights: bool = False) -> Distillable:
        """A copy that embeds the guidance scale, and answers as before until it is trained."""
        ...

    def with_lora(self, lora: LoRA) -> nn.Module:
        """Another over the same weights that trains low-rank adapters alone."""
        ...

    def recompute(self) -> None:
        """Keep the inputs of blocks alone, and compute the rest again on the way back."""
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
        self._trained[name] = trained_weights(engine.module)


def student_network(network: nn.Module, spec: Trained) -> nn.Module:
    """What a network of a round begins as: with the inputs that the method asks for, its trained weights in float32.

    A copy, or low-rank adapters of its own over the very weights of `network`.
    """
    begun = cast(Distillable, network)
    if spec.lora.rank:
        begun = begun.with_guidance_input(shares_weights=True) if spec.guidance_input else begun
        return begun.with_lora(spec.lora)
    copied = cast(nn.Module, begun.with_guidance_input()) if spec.guidance_input else copy.deepcopy(network)
    return copied.float().requires_grad_(True)


def meaning(net: nn.Module, spec: Trained, base: Denoiser) -> Denoiser:
    """The network as a denoiser: with the base model's schedule and prediction, or re-purposed."""
    schedules: Mapping[str, Callable[[], Schedule]] = {
        "": lambda: base.schedule,
        "flow": RectifiedFlow,
        "edm": EDM,
        "zero_snr": lambda: zero_snr(base.schedule),
    }
    return Denoiser(net, schedules[spec.schedule](), spec.prediction or base.prediction)


def zero_snr(schedule: Schedule) -> Schedule:
    """The schedule with its last time made pure noise (arXiv:2305.08891). Raises ValueError where it holds no table."""
    if not isinstance(schedule, DiscreteVP):
        raise ValueError("zero terminal SNR is for teachers with a variance-preserving schedule")
    alphas = schedule.alphas_cumprod.cpu()
    betas = 1 - alphas / torch.cat([torch.ones(1), alphas[:-1]])
    return DiscreteVP(torch.cumprod(1 - rescale_zero_terminal_snr(betas), 0)) if alphas[-1] > 0 else schedule


def build(
    round: Round,
    base: Denoiser,
    teacher: Denoiser,
    start: nn.Module,
    specs: Callable[[Trained | Critic], EngineSpec],
    make_engine: Callable[[nn.Module, EngineSpec], Engine],
    frozen: Callable[[Frozen], nn.Module] | None = None,
    placed: Callable[[Denoiser], Denoiser] = lambda teacher: teacher,
) -> Networks:
    """The round's networks. `start` is what the student begins as, already with its inputs.

    `base` is the model that the first round starts from, `teacher` the one that teaches this round; `placed` says where
    that is kept.

    Targets are copied before an engine cuts up what they average; at ZeRO-3 they are cut up themselves.
    """
    networks = Networks()
    if round.online:
        networks.nets["teacher"] = teacher
    for name, net in round.nets.items():
        if isinstance(net, Frozen):
            assert frozen is not None
            networks.nets[name] = frozen(net).requires_grad_(False)
    for name, net in round.nets.items():
        if isinstance(net, Critic):
            seeing = networks.nets[net.on]
            critic = net.init(cast(nn.Module, seeing.net if isinstance(seeing, Denoiser) else seeing))
            engine = make_engine(critic.train(), specs(net))
            networks.add(name, engine, engine.module)
        if not isinstance(net, Trained):
            continue
        module = start if net.init == "student" else student_network(cast(nn.Module, teacher.net), net)
        module.train()
        spec = specs(net)
        if spec.training.gradient_checkpointing:
            cast(Distillable, module).recompute()
        followers = {other: a for other, a in round.nets.items() if isinstance(a, Averaged) and a.of == name}
        targets = {other: frozen_copy(module) for other, a in followers.items() if a.is_target}
        engine = make_engine(module, spec)
        networks.add(name, engine, meaning(engine.module, net, base))
        if isinstance(engine.partition, Sharded):
            targets = {other: inference_engine(target, spec) for other, target in targets.items()}
        for other, follower in followers.items():
            networks.averages[other] = Average(engine, follower.decay, targets.get(other))
            networks.of[other] = name
        networks.nets |= {other: meaning(target, net, base) for other, target in targets.items()}
    if round.online:  # only now, because networks started as copies of it
        networks.nets["teacher"] = placed(teacher)
    return networks


def full_state(networks: Networks, name: str) -> dict[str, Tensor]:
    """What was trained of a network, in float32 on the CPU, gathered from all ranks; every rank calls it."""
    engine, average = networks.engines[networks.of.get(name, name)], networks.averages.get(name)
    names = [key for key, weight in engine.module.named_parameters() if weight.requires_grad]
    whole = average.whole() if average else engine.partition.whole(engine.partition.parts())
    return dict(zip(names, whole, strict=True))


def trained_of(round: Round, name: str) -> Trained:
    """The specification behind a network of a round: its own, or that of what it averages."""
    net = round.nets[name]
    while isinstance(net, Averaged):
        net = round.nets[net.of]
    assert isinstance(net, Trained)
    return net
