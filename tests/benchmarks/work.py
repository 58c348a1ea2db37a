"""A round on the embedded teacher in one process, its rows in memory, and what it asks of its networks."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property

import torch
from torch.utils.flop_counter import FlopCounterMode

from fewstep.methods.base import Round
from fewstep.methods.batch import Rows
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
from tests.support.passes import count_passes

HERE = Rank(0, 1, torch.device("cpu"))
POINTS = 51  # of a path


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

    def operations(self, steps: int = 1) -> float:
        """Floating-point operations of all networks a step, the way back included."""
        with FlopCounterMode(display=False) as counter:
            self.train(steps)
        return counter.get_total_flops() / steps

    def passes(self, steps: int = 1) -> float:
        """Operations of the denoisers a step, in those of one forward pass of the teacher's."""
        return count_passes(lambda: self.train(steps), self.teacher.network, self.rows) / steps


def embedded_teacher() -> Teacher:
    """The emoji teacher."""
    return Teacher(TeacherSpec(folder=str(TEACHERS["emoji"])))
