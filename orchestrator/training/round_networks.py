"""Builds a round's networks from the teacher, gives them engines, and freezes them in turn."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from torch import Tensor, nn

from fewstep.methods.base import Averaged, Critic, Frozen, Round, Trained
from fewstep.methods.diffusion import Denoiser
from fewstep.orchestrator.engines.deepspeed import inference_engine
from fewstep.orchestrator.engines.engine import Engine, EngineSpec, trained_weights
from fewstep.orchestrator.engines.moving_average import Average, frozen_copy
from fewstep.orchestrator.engines.partition import Sharded
from fewstep.orchestrator.students.student import Distillable, as_denoiser, module_of, student_network

MakeEngine = Callable[[nn.Module, EngineSpec], Engine]


@dataclass(frozen=True)
class TrainedNetwork:
    """A network with its engine, and the averages that follow it."""

    engine: Engine
    net: Denoiser | nn.Module  # as losses call it
    weights: Sequence[nn.Parameter]  # that its engine moves
    averages: Mapping[str, Average] = field(default_factory=dict)
    targets: Mapping[str, Denoiser] = field(default_factory=dict)  # those of the averages that losses call


@dataclass(frozen=True)
class RoundNetworks:
    """What losses call (`nets`), and what is trained of it."""

    nets: Mapping[str, Denoiser | nn.Module]
    trained: Mapping[str, TrainedNetwork]

    @property
    def engines(self) -> dict[str, Engine]:
        """The engine of each trained network."""
        return {name: network.engine for name, network in self.trained.items()}

    @property
    def averages(self) -> dict[str, Average]:
        """The averages of all trained networks."""
        return {name: average for network in self.trained.values() for name, average in network.averages.items()}

    @contextmanager
    def only(self, name: str) -> Iterator[Engine]:
        """Let gradients reach one network's weights; they still flow through the others to their inputs."""
        for other, network in self.trained.items():
            for weight in network.weights:
                weight.requires_grad_(other == name)
        yield self.trained[name].engine
        for network in self.trained.values():
            for weight in network.weights:
                weight.requires_grad_(True)


def build_networks(
    round: Round,
    base: Denoiser,
    teacher: Denoiser,
    start: nn.Module,
    specs: Callable[[Trained | Critic], EngineSpec],
    make_engine: MakeEngine,
    frozen: Callable[[Frozen], nn.Module] | None = None,
    placed: Callable[[Denoiser], Denoiser] = lambda teacher: teacher,
) -> RoundNetworks:
    """The round's networks, in its order. `start` is what the student begins as, already with its inputs.

    `base` is the model that the first round starts from, `teacher` the one that teaches this round; `placed` says where
    that is kept.
    """
    nets: dict[str, Denoiser | nn.Module] = {"teacher": teacher} if round.online else {}
    trained: dict[str, TrainedNetwork] = {}
    for name, net in round.nets.items():
        if isinstance(net, Frozen):
            assert frozen is not None
            nets[name] = frozen(net).requires_grad_(False)
    for name, net in round.nets.items():
        if isinstance(net, Critic):
            trained[name] = _critic(net, nets["features"], specs(net), make_engine)
        elif isinstance(net, Trained):
            module = start if net.init == "student" else student_network(module_of(teacher), net)
            followers = {other: a for other, a in round.nets.items() if isinstance(a, Averaged) and a.of == name}
            trained[name] = _denoiser(net, module, followers, base, specs(net), make_engine)
        else:
            continue
        nets |= {name: trained[name].net, **trained[name].targets}
    if round.online:  # only now, because networks started as copies of it
        nets["teacher"] = placed(teacher)
    return RoundNetworks(nets, trained)


def _critic(net: Critic, features: Denoiser | nn.Module, spec: EngineSpec, make_engine: MakeEngine) -> TrainedNetwork:
    """A critic of what the feature network sees."""
    assert isinstance(features, nn.Module)
    engine = make_engine(net.init(features).train(), spec)
    return TrainedNetwork(engine, engine.module, trained_weights(engine.module))


def _denoiser(
    net: Trained,
    module: nn.Module,
    followers: Mapping[str, Averaged],
    base: Denoiser,
    spec: EngineSpec,
    make_engine: MakeEngine,
) -> TrainedNetwork:
    """A trained denoiser with its averages.

    Targets are copied before an engine cuts up what they average; at ZeRO-3 they are cut up themselves.
    """
    module.train()
    if spec.training.gradient_checkpointing:
        assert isinstance(module, Distillable)
        module.recompute()
    if net.head:
        module.add_module("head", net.head(module))
    targets = {name: frozen_copy(module) for name, follower in followers.items() if follower.is_target}
    engine = make_engine(module, spec)
    if isinstance(engine.partition, Sharded):
        targets = {name: inference_engine(target, spec) for name, target in targets.items()}
    return TrainedNetwork(
        engine,
        as_denoiser(engine.module, net, base),
        trained_weights(engine.module),
        {name: Average(engine, follower.decay, targets.get(name)) for name, follower in followers.items()},
        {name: as_denoiser(target, net, base) for name, target in targets.items()},
    )


def full_state(networks: RoundNetworks, name: str) -> dict[str, Tensor]:
    """What was trained of a network, in float32 on the CPU, gathered from all ranks; every rank calls it."""
    network = next(network for other, network in networks.trained.items() if name in (other, *network.averages))
    engine, average = network.engine, network.averages.get(name)
    names = [key for key, weight in engine.module.named_parameters() if weight.requires_grad]
    whole = average.whole() if average else engine.partition.whole(engine.partition.parts())
    return dict(zip(names, whole, strict=True))
