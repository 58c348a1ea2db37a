"""Trains one rank of a round: its networks, its rows, its checkpoints. Knows no Ray."""

from __future__ import annotations

import resource
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import torch
from torch import Tensor

from fewstep.methods.base import Start
from fewstep.methods.diffusion import Denoiser
from fewstep.orchestrator.dataloader.columns import clean_latents, columns_of
from fewstep.orchestrator.dataloader.loader import Loader
from fewstep.orchestrator.datasets.dataset import Dataset
from fewstep.orchestrator.datasets.sources import dataset_kinds
from fewstep.orchestrator.engines.deepspeed import DeepSpeedEngine
from fewstep.orchestrator.engines.engine import EngineSpec
from fewstep.orchestrator.engines.rank import Rank
from fewstep.orchestrator.errors import Abandoned, Diverged
from fewstep.orchestrator.evaluation.results import label
from fewstep.orchestrator.families.network import PipelineNetwork
from fewstep.orchestrator.observability import metrics
from fewstep.orchestrator.observability.console import say
from fewstep.orchestrator.observability.image_grid import Pixels, grid, sheet_of
from fewstep.orchestrator.observability.trackers import Trackers
from fewstep.orchestrator.recipe.recipe import Recipe
from fewstep.orchestrator.runs.run import RESULT, is_abandoned
from fewstep.orchestrator.storage.block_cache import cache_for
from fewstep.orchestrator.students.round_result import StudentSpec, Weights, read_denoiser, write_result
from fewstep.orchestrator.students.student import student_network, trained_of
from fewstep.orchestrator.students.warm_start import warm_start
from fewstep.orchestrator.teachers.teacher import Teacher
from fewstep.orchestrator.training import checkpoint, network_state
from fewstep.orchestrator.training.divergence import Divergence, DivergenceMonitor, moments, sums
from fewstep.orchestrator.training.frozen_networks import frozen_network, parts_used, place_teacher, release_unused
from fewstep.orchestrator.training.loop import Progress, learning_rate, train
from fewstep.orchestrator.training.round_job import PICTURES, RoundJob, length
from fewstep.orchestrator.training.round_networks import RoundNetworks, build_networks, full_state
from fewstep.orchestrator.training.validation import ScoreHistory, metric_of
from fewstep.orchestrator.training.validator import Validator

KIB = 1024  # bytes
COLUMNS = 6  # of the pictures that trackers show of a student


class RoundTrainer:
    """One rank of one round: networks, loaders, checkpoints. torch.distributed must be up.

    `is_warned` says whether a node is about to be taken away; every rank asks it as often, and hears the same.
    """

    def __init__(
        self, recipe: Recipe, job: RoundJob, rank: Rank, is_warned: Callable[[], bool] = lambda: False
    ) -> None:
        self.recipe, self.rank, self.folder = recipe, rank, Path(job.folder)
        self.round = recipe.method.build().rounds()[job.round]
        self.steps = length(self.round, recipe)
        base = Teacher(recipe.teacher, rank.device)
        self.networks = self._networks(job, base)
        self.recorder = metrics.Recorder(self.folder / "metrics.jsonl", Path(recipe.output).name, recipe.method.name)
        self._trackers = Trackers(recipe, self.folder)
        self._datasets = {name: self._open(url, version) for name, (url, version) in job.datasets.items()}
        shapes = {shape for dataset in self._datasets.values() for shape in dataset.plan.latent_shapes}
        self._size_conditioning = {shape: base.family.size_conditioning(shape) for shape in shapes}
        self._monitor = DivergenceMonitor(self.round, is_scaled=recipe.training.precision == "float16")
        self._validation_spec, self._history = job.validation, ScoreHistory()
        self._is_warned, self._was_warned = is_warned, False
        self._sealer, self._sealing = ThreadPoolExecutor(1, "sealer"), list[Future[None]]()
        if job.validation:
            facts = StudentSpec.of(trained_of(self.round, self.round.result))
            self._validator = Validator(job.validation, recipe, base, facts, rank)
            stored = next(iter(self._datasets.values())).row_groups().read(0)
            self._teacher_latents = moments(sums(clean_latents(stored)))
        else:
            release_unused(base, parts_used(self.round, base))

    def _open(self, url: str, version: int) -> Dataset:
        resources = self.recipe.resources
        return Dataset.open(url, version, cache_for(url, resources.cache, resources.cache_gb))

    def _networks(self, job: RoundJob, base: Teacher) -> RoundNetworks:
        def model(which: Start) -> Denoiser:
            if which == "base":
                return base.denoiser()
            before = self.recipe.method.build().rounds()[job.round - 1]
            weights = "student" if which == "previous" and before.result != "student" else "result"
            return read_denoiser(Path(job.previous), base, before, weights)

        start, spec = model(self.round.start).net, trained_of(self.round, self.round.result)
        assert isinstance(start, PipelineNetwork)
        student = student_network(start, spec)
        if self.recipe.training.init_from and job.round == 0:
            warm_start(student, self.recipe, spec)
        return build_networks(
            self.round,
            base.denoiser(),
            model(self.round.teacher),
            start=student,
            specs=lambda net: EngineSpec.of(self.recipe.training, net, self.rank.world_size),
            make_engine=DeepSpeedEngine,
            frozen=lambda net: frozen_network(net, base, self.recipe.training.features),
            placed=lambda teacher: place_teacher(
                teacher, self.recipe.training, self.recipe.teacher.dtype, self.rank.device
            ),
        )

    def train(self) -> None:
        """Train from the newest checkpoint to the end of the round. Raises Diverged or Abandoned, on every rank."""
        start, seen = self._resume()
        if self.rank.index == 0:
            self._begin(start)
        progress = Progress(self.rank.device, seen)
        batches = {name: self._loader(name).batches for name in self.round.sources}
        try:
            train(
                self.round,
                self.networks,
                batches,
                self.recipe.training,
                self.rank,
                steps=self.steps,
                start=start,
                progress=progress,
                after=self._after,
            )
            self._finish(progress)
        finally:
            self._trackers.close()

    def _loader(self, name: str) -> Loader:
        dataset = self._datasets[name]
        conditions = dataset.conditions()
        return Loader(
            dataset.row_groups(),
            batch_size=self.recipe.training.batch_size,
            rows=self.rank.rows(self.recipe.training.batch_size),
            seed=self.recipe.training.seed,
            conditions=conditions.cond,
            uncond=conditions.uncond,
            size_conditioning=self._size_conditioning,
            device=self.rank.device,
            columns=columns_of(self.round.sources[name].kind, dataset_kinds(self.recipe, self.round)[name], dataset),
        )

    def _begin(self, start: int) -> None:
        """Record where the round stands before its first step."""
        before = metrics.newest(self.folder / "metrics.jsonl").get("train/recoveries", -1)
        standing = {"train/steps": self.steps, "train/recoveries": before + 1, "train/saved_unix_s": time.time()}
        self._trackers.open(start)
        self._record(start, {"train/step": start, **standing})

    def _record(self, step: int, values: Mapping[str, float]) -> None:
        self.recorder.record(step, values)
        self._trackers.log(step, values)

    def _after(self, step: int, progress: Progress) -> bool:
        training, is_last = self.recipe.training, step == self.steps
        is_validated = self._validation_spec is not None and (is_last or step % training.evaluate_every == 0)
        is_saved = not is_last and (is_validated or step % training.checkpoint_every == 0)
        if is_last or is_saved or step % training.log_every == 0:
            self._report(step, progress)
            if self.rank.broadcast(is_abandoned(self.folder.parent.parent)):
                raise Abandoned(f"{self.round.name} was told to end at step {step}")
            is_saved = is_saved or (not is_last and self._must_hurry())
        if is_validated:
            self._validate(step)
        if stops := 0 < training.patience <= self._history.since_best:
            return stops
        if is_saved:
            self._save(step, progress.batches)
        return False

    def _must_hurry(self) -> bool:
        """Whether this is the first time that a node is said to go."""
        before, self._was_warned = self._was_warned, self._is_warned()
        return self._was_warned and not before

    def _report(self, step: int, progress: Progress) -> None:
        training = self.recipe.training
        values = progress.report(self.rank, training.batch_size)
        for name, engine in self.networks.engines.items():
            values[f"grad_norm/{name}"] = engine.grad_norm()
            values[f"learning_rate/{name}"] = learning_rate(self.round, training, name, step - 1, self.steps)
        if self.rank.index == 0:
            values["train/peak_memory"] = peak_memory(self.rank.device)
            self._record(step, values | {"train/step": step})
        self._stop_on(step, self._monitor.report(step, values))

    def _validate(self, step: int) -> None:
        sampled = self._validator.sample(full_state(self.networks, self.round.result))
        if self.rank.index == 0:
            self._record(step, sampled.quality)
            self._trackers.picture(step, sheet_of(sampled.measured.pictures, COLUMNS))
            self._draw(step, sampled.measured.pictures)
        self._stop_on(step, self._monitor.samples(step, sampled.latents, self._teacher_latents, sampled.variety))
        self._history.add(step, sampled.quality[metric_of(self.recipe)])

    def _draw(self, step: int, pictures: Pixels) -> None:
        """What the student makes of the first prompts, below what the teacher makes of them."""
        assert self._validation_spec
        spec, count = self._validation_spec, self.recipe.evaluation.reference_steps
        rows = {label("teacher", count): spec.reference.pictures, label("student", spec.system.steps): pictures}
        captions = [spec.setting.prompt(number) for number in range(min(2 * COLUMNS, len(pictures)))]
        file = self.folder / PICTURES / f"step-{step:07}.png"
        grid([(name, row[: len(captions)]) for name, row in rows.items()], captions, file)

    def _stop_on(self, step: int, fault: Divergence | None) -> None:
        """Raise Diverged where rank 0 sees a fault."""
        why = ""
        if fault and self.rank.index == 0:
            self._settle()
            good = checkpoint.newest(self.folder / "checkpoints", fault.good)
            left = f"the last good checkpoint is {good.folder}" if good else "no checkpoint is from before that"
            why = f"training went wrong at step {step} of {self.round.name}: {fault.why}; {left}"
        if why := self.rank.broadcast(why):
            raise Diverged(why)

    def _save(self, step: int, seen: int) -> None:
        """Write a checkpoint. Rank 0 hashes the files of all ranks and seals it while training goes on."""
        started = time.perf_counter()
        self._settle()
        folder = self.rank.broadcast(checkpoint.new_folder(self.folder / "checkpoints", step))
        network_state.save(self.networks, folder, self.rank.index)
        batches = digest(self.rank.all_sum(seen))  # which waits for every rank
        if self.rank.index == 0:
            self._record(step, {"time/checkpoint_s": time.perf_counter() - started})
            facts = checkpoint.CheckpointFacts(self.rank.world_size, batches, tuple(self._history.scores))
            self._sealing.append(self._sealer.submit(self._seal, folder, step, facts, self._history.best))

    def _seal(self, folder: Path, step: int, facts: checkpoint.CheckpointFacts, best: int) -> None:
        checkpoint.seal(folder, step, facts)
        checkpoint.prune(folder.parent, self.recipe.training.keep_checkpoints, best)
        self.recorder.record(step, {"train/saved_unix_s": time.time()})

    def _settle(self) -> None:
        """Wait until what was written is sealed. Raises what went wrong with it."""
        while self._sealing:
            self._sealing.pop().result()

    def _resume(self) -> tuple[int, int]:
        """Where to go on, and this rank's digest of the batches before; rank 0 looks and tells the others."""
        root = self.folder / "checkpoints"
        last = self.rank.broadcast(checkpoint.newest(root) if self.rank.index == 0 else None)
        if last is None:
            return 0, 0
        self._history = ScoreHistory(last.facts.scores)
        return last.step, self._load(last)

    def _load(self, last: checkpoint.Checkpoint) -> int:
        """Go back to a checkpoint; this rank's digest of its batches, all of which rank 0 holds."""
        world_size = last.facts.world_size
        if world_size == self.rank.world_size or not self.recipe.training.zero_stage:
            network_state.load(self.networks, last.folder, self.rank.index)
        else:
            network_state.load_rescaled(self.networks, last.folder, self.rank, world_size)
        return 0 if self.rank.index else int(last.facts.batches, 16)

    def _finish(self, progress: Progress) -> None:
        """Write the result, the best where the student was validated, whole or not at all."""
        self._settle()
        if self._history.since_best:
            root = self.folder / "checkpoints"
            best = self.rank.broadcast(checkpoint.newest(root, self._history.best) if self.rank.index == 0 else None)
            if best and best.step == self._history.best:
                progress.batches = self._load(best)
            elif self.rank.index == 0:
                say(f"the best checkpoint, of step {self._history.best}, is gone: the last weights are the result")
        states: dict[Weights, dict[str, Tensor]] = {"result": full_state(self.networks, self.round.result)}
        if self.round.result != "student":
            states["student"] = full_state(self.networks, "student")  # a next round may go on from it
        batches = digest(self.rank.all_sum(progress.batches))
        if self.rank.index == 0:
            write_result(self.folder / RESULT, states, self.round, batches)
        torch.distributed.barrier()


def digest(total: int) -> str:
    """The digest of all batches of a round, out of the sum over its ranks: the same for any number of them."""
    return f"{total % 2**64:016x}"


def peak_memory(device: torch.device) -> float:
    """Bytes that this process has held at most: on its device, or without one at all."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * KIB
