"""The trajectory factory against the bare teacher loop: samples per second as a ratio, taken in one run.

    python -m tests.benchmarks.factory [--shards 4] [--repeats 5]

Bare is the same batches of the same teacher with nothing around them: no Ray, no hashing, no writing. First in one
process; then two bare processes against two Ray actors, each with half of the shards, all started beforehand.
Each repeat runs both, one after the other, so that a busy machine slows both alike. Prints JSON.
"""

from __future__ import annotations

import argparse
import itertools
import multiprocessing
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import cast

import ray
import torch

from fewstep.orchestrator.compute.actor_pool import IN_FLIGHT
from fewstep.orchestrator.compute.cluster import connect
from fewstep.orchestrator.compute.tasks import options
from fewstep.orchestrator.datasets.commit_log import CommitLog, create_commit_log, open_commit_log
from fewstep.orchestrator.datasets.dataset import read_conditions
from fewstep.orchestrator.datasets.manifest import CONDITIONS
from fewstep.orchestrator.datasets.plan import Shard, make_plan
from fewstep.orchestrator.generation.factory import SamplingActor
from fewstep.orchestrator.generation.shard_makers import ShardSampler, commit_conditions
from fewstep.orchestrator.inputs.prompts import read_prompts
from fewstep.orchestrator.recipe.recipe import Recipe
from fewstep.orchestrator.recipe.resources import Resources
from fewstep.orchestrator.sampling.guidance import GuidedDenoiser
from fewstep.orchestrator.sampling.ode import sample_path
from fewstep.orchestrator.sampling.solvers import SOLVERS
from fewstep.orchestrator.teachers.teacher import Teacher
from tests.benchmarks import TEACHERS
from tests.benchmarks.ratio import Row, paired, show
from tests.support import tiny


def new_commit_log(recipe: Recipe, folder: Path) -> CommitLog:
    """An empty data set with its conditions."""
    prompts = read_prompts(recipe.trajectories.prompts)
    plan = make_plan(recipe, Teacher(recipe.teacher).card, prompts, 32)
    commit_log = create_commit_log(str(folder), plan, prompts, recipe.teacher)
    commit_conditions(commit_log, 0, plan.num_conditions, "cpu", 1)
    return commit_log


def bare(sampler: ShardSampler, shards: Sequence[Shard]) -> None:
    """Solve every batch of these shards, and drop the result."""
    plan, commit_log = sampler.plan, sampler.commit_log
    conditions = read_conditions(commit_log, commit_log.commits()[0][CONDITIONS])
    teacher, config = sampler.teacher.denoiser(), sampler.teacher.card.scheduler
    for shard in shards:
        for ids in plan.batches(shard):
            cond = conditions.rows(torch.tensor([plan.sample_condition(i) for i in ids]))
            scale = torch.tensor([plan.sample_guidance(i) for i in ids])
            guided = GuidedDenoiser(teacher, cond, conditions.uncond, scale)
            noise = torch.randn(len(ids), *plan.latent_shape)
            sample_path(SOLVERS[plan.solver], config, guided, noise, plan.num_inference_steps)


def factory(sampler: ShardSampler, revision: int) -> None:
    """Make every shard as an actor does, each written while the next is sampled."""
    with ThreadPoolExecutor(IN_FLIGHT) as threads:
        list(threads.map(lambda shard: sampler.make(shard.name, revision), sampler.plan.shards()))


@cache
def _sampler(url: str) -> ShardSampler:
    return ShardSampler(open_commit_log(url), "cpu", 1)


def _bare_half(url: str, half: int) -> None:
    """In a process of its own: every other shard."""
    torch.set_num_threads(1)
    sampler = _sampler(url)
    bare(sampler, sampler.plan.shards()[half::2])


def two(sampler: ShardSampler, revisions: Iterator[int], repeats: int) -> Row:
    """Two actors as `generate` starts them, a new pair each time, against two bare processes."""
    url, names = sampler.commit_log.url, [shard.name for shard in sampler.plan.shards()]
    resources = Resources(cpus_per_worker=1 / repeats)  # all pairs are there from the start, and take turns
    connect(resources)
    spawn = ray.remote(SamplingActor).options(max_concurrency=IN_FLIGHT, **options(resources))
    with ProcessPoolExecutor(2, multiprocessing.get_context("spawn")) as processes:

        def bare_halves() -> None:
            list(processes.map(_bare_half, [url] * 2, range(2)))

        told = [dict.fromkeys(names, next(revisions)) for _ in range(repeats)]
        pairs = [[spawn.remote(url, revision, resources) for _ in range(2)] for revision in told]
        ray.get([actor.start.remote() for pair in pairs for actor in pair])
        turns = iter(pairs)

        def made() -> None:
            pair = next(turns)
            ray.get([pair[place % 2].make.remote(name) for place, name in enumerate(names)])

        bare_halves()  # loads the teacher
        result = paired(bare_halves, made, sampler.plan.samples, repeats)
    ray.shutdown()
    return result


def main(shards: int, repeats: int) -> Iterator[Row]:
    """Measure."""
    torch.set_num_threads(1)
    for name, teacher in TEACHERS.items():
        with tempfile.TemporaryDirectory() as folder:
            data = tiny.recipe_data(Path(folder))
            told = {"samples": 64 * shards, "num_inference_steps": 20, "batch_size": 32, "shard_size": 64}
            prompts = {"prompts": str(teacher / "data" / "prompts.txt"), "guidance_scale": [2.0, 4.0]}
            data["teacher"], data["trajectories"] = {"folder": str(teacher)}, {**prompts, **told}
            yield from of_teacher(name, Recipe.model_validate(data), Path(folder) / "store", repeats)


def of_teacher(name: str, recipe: Recipe, store: Path, repeats: int) -> Iterator[Row]:
    """One actor's work, and two actors."""
    sampler, revisions = ShardSampler(new_commit_log(recipe, store), "cpu", 1), itertools.count()
    size, planned = {"bytes": sampler.plan.total_bytes, "batch_size": sampler.plan.batch_size}, sampler.plan.shards()
    one = paired(
        lambda: bare(sampler, planned), lambda: factory(sampler, next(revisions)), sampler.plan.samples, repeats
    )
    for what, found in (("one actor's work in one process", one), ("two actors", two(sampler, revisions, repeats))):
        shard_s = round(len(planned[0].samples) / cast(float, found["ours_per_s"]), 2)
        yield {"benchmark": f"factory, {name}, {what}", **found, **size, "shard_s": shard_s}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shards", type=int, default=4)
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()
    show(main(args.shards, args.repeats))
