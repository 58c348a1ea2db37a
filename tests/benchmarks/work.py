"""A round on the embedded teacher in one process, its rows in memory, and what it asks of its networks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import cast

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_map

from fewstep.methods.base import Round
from fewstep.methods.batch import Rows
from fewstep.methods.diffusion import Denoiser
from fewstep.orchestrator.engines.engine import EngineSpec
from fewstep.orchestrator.engines.rank import Rank
from fewstep.orchestrator.engines.torch import TorchEngine
from fewstep.orchestrator.recipe.teacher import TeacherSpec
from fewstep.orchestrator.recipe.training import Training
from fewstep.orchestrator.students.student import student_network, trained_of
from fewstep.orchestrator.teachers.teacher import Teacher
from fewstep.orchestrator.training.frozen_networks import frozen_network
from fewstep.orchestrator.training.loop import Progress, train
from fewstep.orchestrator.training.round_networks import build_networks
from tests.benchmarks import TEACHERS

HERE = Rank(0, 1, torch.device("cpu"))
POINTS = 51  # of a path


@dataclass(frozen=True)
class Call:
    """One evaluation of a network in a training step."""

    module: nn.Module
    arguments: tuple[object, ...]
    is_differentiated: bool

    @property
    def passes(self) -> int:
        """In forward passes of one row; a backward pass is two of them."""
        first = tree_flatten(self.arguments)[0][0]
        return len(cast(Tensor, first)) * (3 if self.is_differentiated else 1)

    def again(self) -> None:
        """The same arithmetic alone."""
        arguments = tree_map(_fresh, self.arguments)
        with torch.set_grad_enabled(self.is_differentiated):
            outputs = tree_flatten(self.module(*arguments))[0]
        if self.is_differentiated:
            torch.stack([output.sum() for output in outputs]).sum().backward()


def _fresh(value: object) -> object:
    return value.detach().requires_grad_(value.requires_grad) if isinstance(value, Tensor) else value


class Work:
    """A method's round with what it trains, on rows that stay the same."""

    def __init__(self, teacher: Teacher, round: Round, batch_size: int) -> None:
        self.round, self.teacher = round, teacher
        self.training = Training(steps=1, batch_size=batch_size)
        denoiser = teacher.denoiser()
        self.networks = build_networks(
            round,
            denoiser,
            denoiser,
            student_network(teacher.network, trained_of(round, round.result)),
            lambda net: EngineSpec.of(self.training, net, 1),
            TorchEngine,
            lambda net: frozen_network(net, teacher, self.training.features),
        )

    @cached_property
    def rows(self) -> Rows:
        """With the columns of every source."""
        size, latent = self.training.batch_size, self.teacher.card.latent_shape
        noise, x0 = torch.randn(size, *latent), torch.randn(size, *latent)
        u = torch.linspace(1, 0, POINTS).view(1, -1, 1, 1, 1)
        columns = {
            "path": u * noise[:, None] + (1 - u) * x0[:, None],
            "times": torch.linspace(999, -1, POINTS).expand(size, -1),
            "noise": noise,
            "x0": x0,
            "blank": torch.zeros_like(x0),
            "guidance_scale": torch.full((size,), 3.0),
            "sample_id": torch.arange(size),
        }
        cond = self.teacher.encode([str(i) for i in range(size)])
        uncond = {name: value.expand(size, *value.shape[1:]) for name, value in self.teacher.encode([""]).items()}
        return Rows(columns, *({name: value.clone() for name, value in part.items()} for part in (cond, uncond)))

    def train(self, steps: int) -> None:
        """That many steps of the loop, and a report at the end."""

        def stream(start: int) -> Iterator[Rows]:
            while True:
                yield self.rows

        def after(step: int, progress: Progress) -> bool:
            if step == steps:
                progress.report(HERE, self.training.batch_size)
            return False

        batches = dict.fromkeys(self.round.sources, stream)
        train(self.round, self.networks, batches, self.training, HERE, steps=steps, after=after)

    def calls(self) -> dict[str, list[Call]]:
        """What one step evaluates, by the network of each update."""
        made: dict[str, list[Call]] = {}
        for update in self.round.updates:
            calls = made.setdefault(update.net, [])

            def note(module: nn.Module, arguments: tuple, output: object, calls: list[Call] = calls) -> None:
                differentiated = any(value.requires_grad for value in tree_flatten(output)[0])
                calls.append(Call(module, tree_map(_fresh, arguments), differentiated))

            handles = [module.register_forward_hook(note) for module in self._modules()]
            only = Round(self.round.name, (update,), self.round.nets, self.round.sources, online=self.round.online)
            batches = dict.fromkeys(self.round.sources, lambda start: iter([self.rows]))
            train(only, self.networks, batches, self.training, HERE, steps=1)
            for handle in handles:
                handle.remove()
        return made

    def _modules(self) -> Sequence[nn.Module]:
        nets = self.networks.nets.values()
        return [cast(nn.Module, net.net) if isinstance(net, Denoiser) else net for net in nets]

    def again(self, calls: dict[str, list[Call]], steps: int) -> None:
        """The same evaluations and optimizer steps, with no loss, no draws and no bookkeeping around them."""
        for _ in range(steps):
            for name, evaluations in calls.items():
                with self.networks.only(name) as engine:
                    for call in evaluations:
                        call.again()
                    engine.step(self.training.learning_rate)


def embedded_teacher() -> Teacher:
    """The emoji teacher."""
    return Teacher(TeacherSpec(folder=str(TEACHERS["emoji"])))
