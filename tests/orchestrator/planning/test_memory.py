"""What an actor holds in memory, measured on the sampler that it runs, in a process of its own."""

from __future__ import annotations

import multiprocessing
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path

import torch
from torch import Tensor

from fewstep.orchestrator.compute.actor_pool import IN_FLIGHT
from fewstep.orchestrator.datasets.commit_log import open_commit_log
from fewstep.orchestrator.datasets.plan import ROW_GROUP_BYTES
from fewstep.orchestrator.generation.shard_makers import ShardSampler
from tests.support.data_sets import MakeRecipe, new_commit_log
from tests.support.peak import peak


class Instant(ShardSampler):
    """Samples batches without asking the teacher, which it has loaded all the same."""

    def _sample_batch(self, ids: range) -> tuple[Tensor, Tensor]:
        return torch.full((len(ids), *self.plan.path_shape(0)), ids[0] % 99), torch.zeros(len(self.plan.saved_points))


def grown(url: str) -> int:
    """By how much the peak rises while shards are made, once the teacher is loaded and has made a small one."""
    sampler = Instant(open_commit_log(url), "cpu", 1)
    names = [shard.name for shard in sampler.plan.shards()]
    sampler.make(names[-1], 0)
    before = peak()
    with ThreadPoolExecutor(IN_FLIGHT) as actor:
        list(actor.map(lambda name: sampler.make(name, 0), names[:-1]))
    return peak() - before


def test_an_actor_holds_three_shards_at_most_beside_its_teacher(make_recipe: MakeRecipe, tmp_path: Path) -> None:
    told = {"samples": 4 * 16384 + 32, "shard_size": 16384, "batch_size": 32, "num_inference_steps": 7}
    commit_log = new_commit_log(make_recipe(**told, save="all"), tmp_path)
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as process:
        held = process.submit(grown, commit_log.url).result()
    shard = commit_log.plan.row_bytes(commit_log.plan.latent_shape) * commit_log.plan.shard_size
    assert shard > 64 * 1024**2
    assert held < 3 * shard + 16 * ROW_GROUP_BYTES, f"{held / shard:.2f} shards"  # Parquet's writer has some, too
