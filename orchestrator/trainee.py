"""One rank of a round: its networks, its rows, its checkpoints. Knows no Ray."""

from __future__ import annotations

import resource
import time
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from methods.base import Round, Start
from methods.diffusion import Denoiser
from orchestrator import checkpoint, metrics
from orchestrator.cache import cache_for
from orchestrator.dataset import Dataset
from orchestrator.engine import DeepSpeedEngine, EngineSpec
from orchestrator.errors import BadInput
from orchestrator.frozen import frozen_network
from orchestrator.loader import Loader
from orchestrator.loop import Place, Progress, learning_rate, train
from orchestrator.network import PipelineNetwork
from orchestrator.networks import Networks, build, full_state, student_network, trained_of
from orchestrator.recipe import Recipe
from orchestrator.results import RESULT, Weights, read_denoiser, write_result
from orchestrator.sources import columns_of, stocks_of
from orchestrator.teacher import Teacher
from orchestrator.warm_start import warm_start

KIB = 1024  # bytes


@dataclass(frozen=True)
class Job:
    """What a training worker is told; plain data, for Ray to carry."""

    recipe: dict[str, object]
    round: int  # from 0
    folder: str  # of the round
    previous: str  # result of the round before
    datasets: dict[str, tuple[str, int]]  # place and version, for each source


def length(round: Round, recipe: Recipe) -> int:
    """Training steps of a round."""
    return max(1, int(recipe.training.steps * round.length))


class Trainee:
    """One rank of one round: networks, loaders, checkpoints. torch.distributed must be up."""

    def __init__(self, recipe: Recipe, job: Job, place: Place) -> None:
        self.recipe, self.place, self.folder = recipe, place, Path(job.folder)
        self.round = recipe.method.build().rounds()[job.round]
        self.steps = length(self.round, recipe)
        self.networks = self._networks(job)
        self.recorder = metrics.Recorder(self.folder / "metrics.jsonl", Path(recipe.output).name, recipe.method.name)
        self._datasets = job.datasets

    def _networks(self, job: Job) -> Networks:
        base = Teacher(self.recipe.teacher, self.place.device)

        def model(which: Start) -> Denoiser:
            if which == "base":
                return base.denoiser()
            before = self.recipe.method.build().rounds()[job.round - 1]
            weights = "student" if which == "previous" and before.result != "student" else "result"
            return read_denoiser(Path(job.previous), base, before, weights)

        start = cast(nn.Module, model(self.round.start).net)
        trained = trained_of(self.round, self.round.result)
        student = student_network(start, trained)
        if self.recipe.training.init_from and job.round == 0:
            warm_start(cast(PipelineNetwork, student), self.recipe, trained)
        return build(
            self.round,
            base.denoiser(),
            model(self.round.teacher),
            start=student,
            specs=lambda net: EngineSpec.of(self.recipe.training, net, self.place.world_size),
            make_engine=DeepSpeedEngine,
            frozen=lambda net: frozen_network(net, base, self.recipe.training.features),
        )

    def train(self) -> None:
        """From the newest checkpoint to the end of the round."""
        start, seen = self._resume()
        if self.place.rank == 0:
            self._begin(start)
        progress = Progress(self.place.device, seen)
        batches = {name: self._loader(name).batches for name in self.round.sources}
        train(
            self.round,
            self.networks,
            batches,
            self.recipe.training,
            self.place,
            steps=self.steps,
            start=start,
            progress=progress,
            after=self._after,
        )
        self._finish(progress)

    def _loader(self, name: str) -> Loader:
        place, version = self._datasets[name]
        resources = self.recipe.resources
        dataset = Dataset.open(place, version, cache_for(place, resources.cache, resources.cache_gb))
        conditions = dataset.conditions()
        return Loader(
            dataset.row_groups(),
            batch_size=self.recipe.training.batch_size,
            rows=self.place.rows(self.recipe.training.batch_size),
            seed=self.recipe.training.seed,
            conditions=conditions.cond,
            uncond=conditions.uncond,
            device=self.place.device,
            columns=columns_of(self.round.sources[name].kind, stocks_of(self.recipe, self.round)[name], dataset),
        )

    def _begin(self, start: int) -> None:
        """Record where the round stands before its first step."""
        before = metrics.newest(self.folder / "metrics.jsonl").get("train/recoveries", -1)
        standing = {"train/steps": self.steps, "train/recoveries": before + 1, "train/saved_unix_s": time.time()}
        self.recorder.record(start, {"train/step": start, **standing})

    def _after(self, step: int, progress: Progress) -> None:
        training = self.recipe.training
        if step % training.log_every == 0 or step == self.steps:
            values = progress.report(self.place, training.batch_size)
            for name, engine in self.networks.engines.items():
                values[f"grad_norm/{name}"] = engine.grad_norm()
                values[f"learning_rate/{name}"] = learning_rate(self.round, training, name, step - 1, self.steps)
            if self.place.rank == 0:
                values["train/peak_memory"] = peak_memory(self.place.device)
                self.recorder.record(step, values | {"train/step": step})
        if step % training.checkpoint_every == 0 and step < self.steps:
            self._save(step, progress.batches)

    def _save(self, step: int, seen: str) -> None:
        started = time.perf_counter()
        root = self.folder / "checkpoints"
        named: list[str] = [str(checkpoint.new_folder(root, step))]
        torch.distributed.broadcast_object_list(named)
        folder = Path(named[0])
        for name, engine in self.networks.engines.items():
            engine.save(folder / name)
        for name, average in self.networks.averages.items():
            save_file(average.state(), folder / f"{name}-rank{self.place.rank}.safetensors")
        torch.distributed.barrier()
        if self.place.rank == 0:
            checkpoint.seal(folder, step, {"world_size": self.place.world_size, "batches": seen})
            checkpoint.prune(root, self.recipe.training.keep_checkpoints)
            took = {"time/checkpoint_s": time.perf_counter() - started, "train/saved_unix_s": time.time()}
            self.recorder.record(step, took)
        torch.distributed.barrier()

    def _resume(self) -> tuple[int, str]:
        """Where to go on, and the digest of the batches before; rank 0 looks and tells the others."""
        found: list[checkpoint.Checkpoint | None] = [None]
        if self.place.rank == 0:
            found = [checkpoint.newest(self.folder / "checkpoints")]
        torch.distributed.broadcast_object_list(found)
        last = found[0]
        if last is None:
            return 0, ""
        if last.facts["world_size"] != self.place.world_size and self.recipe.training.zero_stage:
            raise BadInput(
                f"resources.workers: the checkpoint {last.folder.name} was written by {last.facts['world_size']} "
                f"workers at ZeRO-{self.recipe.training.zero_stage} and cannot be continued by {self.place.world_size}"
            )
        for name, engine in self.networks.engines.items():
            engine.load(last.folder / name)
        for name, average in self.networks.averages.items():
            rank = self.place.rank if self.recipe.training.zero_stage == 3 else 0
            average.restore(load_file(last.folder / f"{name}-rank{rank}.safetensors"))
        return last.step, str(last.facts["batches"])

    def _finish(self, progress: Progress) -> None:
        """Write the result, whole or not at all."""
        states: dict[Weights, dict[str, Tensor]] = {"result": full_state(self.networks, self.round.result)}
        if self.round.result != "student":
            states["student"] = full_state(self.networks, "student")  # a next round may go on from it
        if self.place.rank == 0:
            write_result(self.folder / RESULT, states, self.round, progress.batches)
        torch.distributed.barrier()


def peak_memory(device: torch.device) -> float:
    """Bytes that this process has held at most: on its device, or without one at all."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * KIB
