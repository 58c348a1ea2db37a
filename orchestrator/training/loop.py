"""The training loop. Every method goes through it unchanged, on one process or many."""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Callable, Iterator, Mapping

import torch
from torch import Tensor

from fewstep.methods.base import Critic, Round, Trained
from fewstep.methods.batch import Batch, Draw, Rows
from fewstep.orchestrator.engines.rank import Rank
from fewstep.orchestrator.observability.stopwatch import Stopwatch
from fewstep.orchestrator.recipe.training import Training
from fewstep.orchestrator.training.round_networks import RoundNetworks


class Progress:
    """What happened since the last report; tensors stay on the device until it is asked for."""

    def __init__(self, device: torch.device, batches: int = 0) -> None:
        self.batches = batches  # a digest of this rank's rows so far; the sum over ranks is that of the whole batches
        self.clock = Stopwatch(device)
        self.sums: dict[str, Tensor] = {}
        self.counts: dict[str, int] = {}
        self.started = time.perf_counter()
        self.steps = 0

    def add(self, key: str, value: Tensor) -> None:
        """One more value of a loss term."""
        self.sums[key] = self.sums.get(key, torch.zeros((), device=value.device)) + value.detach().float()
        self.counts[key] = self.counts.get(key, 0) + 1

    def saw(self, step: int, source: str, rows: range, ids: Tensor) -> None:
        """One more batch: the ids of the samples in this rank's rows of it."""
        for row, sample in zip(rows, ids.tolist(), strict=True):
            digest = hashlib.sha256(f"{step} {source} {row} {sample}".encode()).digest()
            self.batches = (self.batches + int.from_bytes(digest[:8])) % 2**64

    def report(self, rank: Rank, batch_size: int) -> dict[str, float]:
        """Means over the steps since the last report and over the ranks; starts anew."""
        times = {name: spent / self.steps for name, spent in self.clock.read().items()}
        seconds = time.perf_counter() - self.started
        losses = torch.stack([self.sums[key] / self.counts[key] for key in self.sums])
        means = torch.cat([losses, torch.tensor(list(times.values()), device=rank.device)])
        if rank.world_size > 1:
            torch.distributed.all_reduce(means)
            means /= rank.world_size
        values = dict(zip([*self.sums, *times], means.tolist(), strict=True))
        values["time/step_s"] = sum(values[name] for name in times)
        values["train/samples_per_s"] = batch_size * self.steps / seconds
        values["train/not_finite"] = sum(not math.isfinite(values[term]) for term in self.sums)
        self.sums, self.counts, self.steps = {}, {}, 0
        self.started = time.perf_counter()
        return values


def learning_rate(round: Round, training: Training, net: str, step: int, steps: int) -> float:
    """Warmup, then constant, then linearly to zero: in the last steps, or in all where the round anneals."""
    spec = round.nets[net]
    assert isinstance(spec, Trained | Critic)
    warmup = min(1.0, (step + 1) / (training.warmup_steps + 1))
    decay = steps if round.anneal else training.decay_steps
    return training.learning_rate * spec.lr_scale * warmup * (min(1.0, (steps - step) / decay) if decay else 1.0)


def micro_batches(whole: Mapping[str, Rows], training: Training, rank: Rank, step: int, update: int) -> Iterator[Batch]:
    """What an update sees of a step, a micro-batch at a time; the layers that it calls are seeded for each."""
    rows = rank.rows(training.batch_size)
    size = len(rows) // training.accumulation
    for first in range(0, training.accumulation * size, size):
        micro = slice(first, first + size)
        draw = Draw(training.seed, step, update, rows[micro], rank.device)
        draw.seed_layers()
        yield Batch({name: source.take(micro) for name, source in whole.items()}, draw)


def train(
    round: Round,
    networks: RoundNetworks,
    batches: Mapping[str, Callable[[int], Iterator[Rows]]],
    training: Training,
    rank: Rank,
    *,
    steps: int,
    start: int = 0,
    progress: Progress | None = None,
    after: Callable[[int, Progress], bool] = lambda step, progress: False,
) -> None:
    """Train from step `start` to `steps`; `after(steps done, progress)` follows each step, and says whether to stop.

    `batches[source](start)` yields this rank's rows of each global batch.
    """
    progress = progress or Progress(rank.device)
    clock = progress.clock
    rows = rank.rows(training.batch_size)
    streams = {name: source(start) for name, source in batches.items()}
    for step in range(start, steps):
        clock.mark()
        whole = {name: next(stream) for name, stream in streams.items()}
        for name, source in whole.items():
            progress.saw(step, name, rows, source.columns["sample_id"])
        clock.mark("time/data_s")
        if round.rollout:
            with torch.no_grad():
                micros = micro_batches(whole, training, rank, step, update=len(round.updates))
                whole["rollout"] = Rows.join([round.rollout(networks.nets, micro) for micro in micros])  # pyright: ignore[reportArgumentType]
            clock.mark("time/forward_s")
        for number, update in enumerate(round.updates):
            if step % update.every:
                continue
            rate = learning_rate(round, training, update.net, step, steps)
            with networks.only(update.net) as engine:
                for micro in micro_batches(whole, training, rank, step, update=number):
                    losses = update.loss(networks.nets, micro)  # pyright: ignore[reportArgumentType]
                    for term, value in losses.items():
                        progress.add(f"loss/{update.net}/{term}", value)
                    clock.mark("time/forward_s")
                    engine.backward(torch.stack(list(losses.values())).sum())
                    clock.mark("time/backward_s")
                    engine.step(rate)
                    clock.mark("time/update_s")
            for average in networks.trained[update.net].averages.values():
                average.update()
            clock.mark("time/update_s")
        progress.steps += 1
        if after(step + 1, progress):
            return
