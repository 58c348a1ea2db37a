"""Builds a round's networks from the teacher, gives them engines, and freezes them in turn."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import cast

from torch import Tensor, nn

from fewstep.methods.base import Averaged, Critic, Frozen, Round, Trained
from fewstep.methods.diffusion import Denoiser
from fewstep.orchestrator.engines.deepspeed import inference_engine
from fewstep.orchestrator.engines.engine import Engine, EngineSpec, trained_weights
from fewstep.orchestrator.engines.moving_average import Average, frozen_copy
from fewstep.orchestrator.engines.partition import Sharded
from fewstep.orchestrator.students.student import Distillable, as_denoiser, student_network


@dataclass
class RoundNetworks:
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


def build_networks(
    round: Round,
    base: Denoiser,
    teacher: Denoiser,
    start: nn.Module,
    specs: Callable[[Trained | Critic], EngineSpec],
    make_engine: Callable[[nn.Module, EngineSpec], Engine],
    frozen: Callable[[Frozen], nn.Module] | None = None,
    placed: Callable[[Denoiser], Denoiser] = lambda teacher: teacher,
) -> RoundNetworks:
    """The round's networks. `start` is what the student begins as, already with its inputs.

    `base` is the model that the first round starts from, `teacher` the one that teaches this round; `placed` says where
    that is kept.

    Targets are copied before an engine cuts up what they average; at ZeRO-3 they are cut up themselves.
    """
    networks = RoundNetworks()
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
        networks.add(name, engine, as_denoiser(engine.module, net, base))
        if isinstance(engine.partition, Sharded):
            targets = {other: inference_engine(target, spec) for other, target in targets.items()}
        for other, follower in followers.items():
            networks.averages[other] = Average(engine, follower.decay, targets.get(other))
            networks.of[other] = name
        networks.nets |= {other: as_denoiser(target, net, base) for other, target in targets.items()}
    if round.online:  # only now, because networks started as copies of it
        networks.nets["teacher"] = placed(teacher)
    return networks


def full_state(networks: RoundNetworks, name: str) -> dict[str, Tensor]:
    """What was trained of a network, in float32 on the CPU, gathered from all ranks; every rank calls it."""
    engine, average = networks.engines[networks.of.get(name, name)], networks.averages.get(name)
    names = [key for key, weight in engine.module.named_parameters() if weight.requires_grad]
    whole = average.whole() if average else engine.partition.whole(engine.partition.parts())
    return dict(zip(names, whole, strict=True))
