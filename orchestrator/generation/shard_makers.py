"""Makes the shards of a data set: the teacher solves its ODE from each sample's own noise, or encodes real images.

Knows no Ray.
"""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import replace
from itertools import chain
from typing import ClassVar

import torch
from torch import Tensor

from fewstep.methods.diffusion import Cond
from fewstep.orchestrator.compute.reproducibility import set_up
from fewstep.orchestrator.datasets.captioned_plans import ImagePlan, ImportPlan
from fewstep.orchestrator.datasets.commit_log import CommitLog
from fewstep.orchestrator.datasets.dataset import NULL, read_conditions
from fewstep.orchestrator.datasets.manifest import CONDITIONS, Commit
from fewstep.orchestrator.datasets.plan import DatasetPlan, Plan, Shard
from fewstep.orchestrator.datasets.shard_file import Columns, torch_dtype
from fewstep.orchestrator.errors import BadInput
from fewstep.orchestrator.inputs.images import captions_of, open_images
from fewstep.orchestrator.inputs.webdataset import LATENT, NOISE, open_samples
from fewstep.orchestrator.recipe.section import Json
from fewstep.orchestrator.sampling.guidance import GuidedDenoiser
from fewstep.orchestrator.sampling.ode import sample_path
from fewstep.orchestrator.sampling.solvers import SOLVERS
from fewstep.orchestrator.teachers.teacher import Teacher

ENCODED_TOGETHER = 32  # prompts


def teacher_of(commit_log: CommitLog, device: str) -> Teacher:
    """The teacher that the plan was made for. Raises BadInput where its place now holds another."""
    teacher = Teacher(commit_log.teacher, device)
    if teacher.card.dump() != commit_log.plan.teacher:
        raise BadInput(
            f"teacher: {commit_log.teacher.origin} is not the teacher that made {commit_log.url}; put that one back"
        )
    return teacher


def commit_conditions(commit_log: CommitLog, revision: int, conditions: int, device: str, threads: int) -> Commit:
    """Encode the negative prompt and the prompts of the first conditions, and commit them."""
    compute = set_up(device, threads)
    teacher, plan, listed = teacher_of(commit_log, device), commit_log.plan, commit_log.prompts()
    prompts = [plan.negative_prompt, *(listed[plan.condition_prompt(c)] for c in range(conditions))]
    padded = [*prompts, *[prompts[-1]] * (-len(prompts) % ENCODED_TOGETHER)]  # batches of one size: the same bits
    starts = range(0, len(padded), ENCODED_TOGETHER)
    batches = [teacher.encode(padded[start : start + ENCODED_TOGETHER]) for start in starts]
    tensors = {name: torch.cat([batch[name] for batch in batches])[: len(prompts)].cpu() for name in batches[0]}
    ids = torch.arange(NULL, conditions)
    return commit_log.commit(CONDITIONS, revision, {"condition_id": ids, **tensors}, {}, compute)


class ShardMaker(ABC):
    """Makes and commits shards one at a time, each in the batches that the plan cuts."""

    batch_field: ClassVar[str]  # the recipe's, for when memory does not suffice

    def __init__(self, commit_log: CommitLog, device: str, threads: int) -> None:
        self.commit_log, self.device = commit_log, torch.device(device)
        self.compute, self._threads = set_up(device, threads), threads
        self.teacher = teacher_of(commit_log, device)
        self._sampling, self._writing = threading.Lock(), threading.Lock()

    @abstractmethod
    def rows(self, shard: Shard) -> tuple[Columns, Json]:
        """The rows of a shard, and what else is to be known of them."""

    def make(self, name: str, revision: int) -> Commit:
        """Make a shard and commit it. Called from two threads, the next is made while this one is written.

        At most three shards are in memory, and a few row groups: one being made, one written, and that one's file.
        """
        with self._sampling:
            if self.commit_log.has(name, revision):  # another driver was first
                return self.commit_log.adopt(name, revision)
            torch.set_num_threads(self._threads)  # again, because OpenMP counts for each calling thread
            try:
                columns, about = self.rows(Shard.named(name))
            except torch.OutOfMemoryError as error:
                # Smaller batches would be another plan, so nothing is cut here.
                size = self.commit_log.plan.batch_size
                raise RuntimeError(f"out of memory; set {self.batch_field} below {size}") from error
            self._writing.acquire()
        try:
            return self.commit_log.commit(name, revision, columns, about, self.compute)
        finally:
            self._writing.release()


class ShardSampler(ShardMaker):
    """Samples the teacher."""

    batch_field = "trajectories.batch_size"

    def __init__(self, commit_log: CommitLog, device: str, threads: int) -> None:
        super().__init__(commit_log, device, threads)
        assert isinstance(commit_log.plan, Plan)
        self.plan = commit_log.plan
        self._conditions = read_conditions(commit_log, commit_log.newest_commit(CONDITIONS))
        self._solver = replace(
            SOLVERS[self.plan.solver], scheduler=self.plan.scheduler, options=self.plan.scheduler_options
        )
        self._denoiser = self.teacher.denoiser()

    def rows(self, shard: Shard) -> tuple[Columns, Json]:
        """Paths, and the times of their points."""
        columns, times = self.sample(shard)
        return columns, {"times": times}

    def sample(self, shard: Shard) -> tuple[Columns, list[float]]:
        """The rows of a shard and the times of their saved points. Raises ValueError where one is not finite."""
        plan, times = self.plan, torch.empty(0)
        path = torch.empty(len(shard.samples), *plan.path_shape(shard.samples.start), dtype=torch_dtype(plan.dtype))
        for ids, room in zip(plan.batches(shard), path.split(plan.batch_size), strict=True):
            states, times = self._sample_batch(ids)
            room.copy_(states)
            check_finite(room, ids)
        return {**scalars(plan, shard.samples), "path": path}, times.tolist()

    def _sample_batch(self, ids: range) -> tuple[Tensor, Tensor]:
        """Solve a batch. One that is cut short is filled up, so that its rows have the bits of a whole one."""
        plan, stored = self.plan, torch_dtype(self.plan.dtype)
        filled = [*ids, *[ids[-1]] * (plan.batch_size - len(ids))]
        columns = scalars(plan, filled)
        # The noise is rounded before it is used: the pair that is stored is the pair that was solved.
        noise = torch.stack([noise_of(plan, i) for i in filled]).to(stored).float().to(self.device)
        size = self.teacher.family.size_conditioning(plan.sample_shape(ids.start))
        sizes = {name: value.expand(len(filled), -1) for name, value in size.items()}
        cond = self._on_device({**self._conditions.rows(columns["condition_id"]), **sizes})
        uncond = self._on_device({**self._conditions.uncond, **size})
        guided = GuidedDenoiser(self._denoiser, cond, uncond, columns["guidance_scale"].to(self.device))
        steps = plan.num_inference_steps
        states, times = sample_path(self._solver, self.teacher.scheduler, guided, noise, steps)
        points = list(plan.saved_points)
        return states[: len(ids), points].to(stored).cpu(), times[points]

    def _on_device(self, cond: Cond) -> Cond:
        return {name: value.to(self.device) for name, value in cond.items()}


class ImageEncoder(ShardMaker):
    """Encodes real images."""

    batch_field = "data.batch_size"

    def __init__(self, commit_log: CommitLog, device: str, threads: int) -> None:
        super().__init__(commit_log, device, threads)
        assert isinstance(commit_log.plan, ImagePlan)
        self.plan = commit_log.plan
        self._images = open_images(self.plan.images, "data.images")
        ids = {caption: id for id, caption in enumerate(commit_log.prompts())}
        self._conditions = [ids[caption] for caption in captions_of(self._images, self.plan.caption_column)]
        sizes = commit_log.teacher.sizes
        self._order = list(chain(*self._images.arranged(sizes))) if self.plan.size_counts else range(len(self._images))

    def rows(self, shard: Shard) -> tuple[Columns, Json]:
        """Latents. Raises BadInput with the first image that cannot be read."""
        shape = self.plan.sample_shape(shard.samples.start)
        x0 = torch.empty(len(shard.samples), *shape, dtype=torch_dtype(self.plan.dtype))
        for ids, room in zip(self.plan.batches(shard), x0.split(self.plan.batch_size), strict=True):
            room.copy_(self._encode_batch(ids))
            check_finite(room, ids)
        conditions = [self._conditions[self._order[i]] for i in shard.samples]
        return {"sample_id": torch.tensor(shard.samples), "condition_id": torch.tensor(conditions), "x0": x0}, {}

    def _encode_batch(self, ids: range) -> Tensor:
        """Encode a batch, filled up as `_sample_batch` does."""
        filled = [*range(len(ids)), *[len(ids) - 1] * (self.plan.batch_size - len(ids))]
        size = self.teacher.family.pixels(self.plan.sample_shape(ids.start))
        pixels = self._images.pixels([self._order[i] for i in ids], size)[filled].to(self.device)
        noise = torch.stack([noise_of(self.plan, i) for i in ids])[filled]
        return self.teacher.latents(pixels, noise)[: len(ids)].to(torch_dtype(self.plan.dtype)).cpu()


class Importer(ShardMaker):
    """Takes over samples that were made elsewhere."""

    batch_field = "data.batch_size"

    def __init__(self, commit_log: CommitLog, device: str, threads: int) -> None:
        super().__init__(commit_log, device, threads)
        assert isinstance(commit_log.plan, ImportPlan)
        self.plan = commit_log.plan
        self._samples = open_samples(self.plan.imported_from)
        ids = {caption: id for id, caption in enumerate(commit_log.prompts())}
        self._conditions = [ids[caption] for caption in self._samples.captions("")]

    def rows(self, shard: Shard) -> tuple[Columns, Json]:
        """Paths of their ends, or latents alone. Raises BadInput with the first sample that cannot be read."""
        ids, stored = shard.samples, torch_dtype(self.plan.dtype)
        x0 = torch.cat([self._x0(batch) for batch in self.plan.batches(shard)]).to(stored)
        check_finite(x0, ids)
        columns = {"sample_id": torch.tensor(ids), "condition_id": torch.tensor([self._conditions[i] for i in ids])}
        if not self.plan.has_noise:
            return {**columns, "x0": x0}, {}
        noise = self._noise(ids).to(stored)
        scale = torch.full((len(ids),), self.plan.guidance_scale)
        ends = self.teacher.schedule.at(torch.tensor([1.0, 0.0])).tolist()
        return {**columns, "guidance_scale": scale, "path": torch.stack([noise, x0], 1)}, {"times": ends}

    def _x0(self, ids: range) -> Tensor:
        if self._samples.has_latents:
            return self._samples.tensors(LATENT, ids, self.plan.latent_shape)
        pixels = self._samples.pixels(ids, self.teacher.family.image_size).to(self.device)
        return self.teacher.latents(pixels, torch.stack([noise_of(self.plan, i) for i in ids])).cpu()

    def _noise(self, ids: range) -> Tensor:
        noise = self._samples.tensors(NOISE, ids, self.plan.latent_shape)
        if not 0.5 < (deviation := noise.std().item()) < 2:
            raise BadInput(f"import: noise has to be of deviation 1 and not {deviation:.3g}; divide by its scale first")
        return noise


def maker_of(commit_log: CommitLog, device: str, threads: int) -> ShardMaker:
    """What makes the shards of a data set."""
    makers = {Plan: ShardSampler, ImagePlan: ImageEncoder, ImportPlan: Importer}
    return makers[type(commit_log.plan)](commit_log, device, threads)


def check_finite(rows: Tensor, ids: Sequence[int]) -> None:
    """Raises ValueError with the first sample that is not finite."""
    finite = rows.flatten(1).isfinite().all(1)
    if not finite.all():
        worst = ids[int(finite.logical_not().nonzero()[0])]
        raise ValueError(f"sample {worst} has numbers that {str(rows.dtype).removeprefix('torch.')} cannot hold")


def noise_of(plan: DatasetPlan, i: int) -> Tensor:
    """The unit noise of sample i in float32, drawn on the CPU wherever it is used."""
    return torch.randn(plan.sample_shape(i), generator=torch.Generator().manual_seed(plan.sample_seed(i)))


def scalars(plan: Plan, ids: Sequence[int]) -> Columns:
    """The columns that the plan alone decides."""
    return {
        "sample_id": torch.tensor(ids),
        "seed": torch.tensor([plan.sample_seed(i) for i in ids]),
        "condition_id": torch.tensor([plan.sample_condition(i) for i in ids]),
        "guidance_scale": torch.tensor([plan.sample_guidance(i) for i in ids], dtype=torch.float32),
    }
