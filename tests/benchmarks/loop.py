"""The training loop against a bare PyTorch loop of the same forward, backward and optimizer step.

    python -m tests.benchmarks.loop [--steps 20] [--repeats 5]

Ours reads rows through the loader, draws its numbers per sample, and keeps losses and gradient norms; the bare
loop repeats one batch of random tensors. The network is the embedded teacher's, trained without a teacher.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator

import torch
from torch import Tensor

from fewstep.methods.base import Losses, Nets, Round, Source, Trained, Update
from fewstep.methods.batch import Batch
from fewstep.methods.losses import l2
from fewstep.orchestrator.dataloader.loader import Loader
from fewstep.orchestrator.engines.engine import EngineSpec
from fewstep.orchestrator.engines.rank import Rank
from fewstep.orchestrator.engines.torch import TorchEngine
from fewstep.orchestrator.recipe.teacher import TeacherSpec
from fewstep.orchestrator.recipe.training import Training
from fewstep.orchestrator.students.student import student_network
from fewstep.orchestrator.teachers.teacher import Teacher
from fewstep.orchestrator.training.loop import Progress, train
from fewstep.orchestrator.training.round_networks import build_networks
from tests.benchmarks import TEACHERS
from tests.benchmarks.ratio import Row, paired, show

GROUPS, ROWS = 16, 64


def regression(nets: Nets, batch: Batch) -> Losses:
    """The student's x_0 at pure noise against the stored end."""
    student, pairs = nets["student"], batch["pairs"]
    t = student.schedule.at(torch.ones(len(pairs)))
    return {"x0": l2(student(pairs.noise, t, pairs.cond).x0, pairs.x0).mean()}


class Random:
    """Row groups of random tensors, in memory."""

    sizes = [ROWS] * GROUPS

    def __init__(self, latent: tuple[int, ...]) -> None:
        self.shapes = [latent] * GROUPS
        self._rows = {
            "noise": torch.randn(ROWS, *latent),
            "x0": torch.randn(ROWS, *latent),
            "sample_id": torch.arange(ROWS),
            "condition_id": torch.arange(ROWS),
        }

    def read(self, group: int) -> dict[str, Tensor]:
        """The same rows in every group."""
        return self._rows


def main(steps: int, batch_size: int, repeats: int) -> Iterator[Row]:
    """Measure."""
    torch.set_num_threads(1)
    teacher = Teacher(TeacherSpec(folder=str(TEACHERS["emoji"])))
    denoiser, latent = teacher.denoiser(), teacher.card.latent_shape
    prompt = {"prompt": teacher.encode([str(i) for i in range(ROWS)])["prompt"].clone()}
    training = Training(steps=steps, batch_size=batch_size)
    place = Rank(0, 1, torch.device("cpu"))
    sources = {"pairs": Source("pairs")}
    round = Round("regression", (Update("student", regression),), {"student": Trained()}, sources, online=False)
    networks = build_networks(
        round,
        denoiser,
        denoiser,
        student_network(teacher.network, Trained()),
        lambda net: EngineSpec.of(training, net, 1),
        TorchEngine,
    )
    loader = Loader(
        Random(latent),
        batch_size=batch_size,
        rows=place.rows(batch_size),
        seed=0,
        conditions=prompt,
        uncond={"prompt": prompt["prompt"][:1]},
        size_conditioning={latent: {}},
        device=place.device,
        columns=dict,
    )

    def ours() -> None:
        def after(step: int, progress: Progress) -> bool:
            if step == steps:
                progress.report(place, batch_size)
                networks.engines["student"].grad_norm()
            return False

        train(round, networks, {"pairs": loader.batches}, training, place, steps=steps, after=after)

    network = student_network(teacher.network, Trained()).requires_grad_(True)
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-4, weight_decay=0.0, fused=True)
    noise, x0 = (torch.randn(batch_size, *latent) for _ in range(2))
    cond = {"prompt": prompt["prompt"][:batch_size]}

    def bare() -> None:
        for _ in range(steps):
            loss = (network(noise, torch.full((batch_size,), 999.0), cond) + x0).square().mean()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

    bare()
    result = paired(bare, ours, steps, repeats)
    yield {"benchmark": "training loop", **result, "batch_size": batch_size, "threads": 1}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()
    show(main(args.steps, args.batch_size, args.repeats))
