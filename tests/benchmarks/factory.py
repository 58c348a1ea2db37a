"""The trajectory factory against the bare teacher loop: samples per second as a ratio, taken in one run.

    python -m tests.benchmarks.factory [--teacher FOLDER] [--shards 4] [--repeats 5]

Bare is the same batches of the same teacher with nothing around them: no Ray, no hashing, no writing.
Each repeat runs both, one after the other, so that a busy machine slows both alike. Prints JSON.
"""

from __future__ import annotations

import argparse
import itertools
import json
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch

from orchestrator.commits import CONDITIONS
from orchestrator.dataset import read_conditions
from orchestrator.ledger import Ledger, create_ledger
from orchestrator.plan import make_plan
from orchestrator.pool import IN_FLIGHT
from orchestrator.prompts import read_prompts
from orchestrator.recipe import Recipe
from orchestrator.sampler import ShardSampler, commit_conditions
from orchestrator.sampling import GuidedTeacher, sample_path
from orchestrator.solvers import SOLVERS
from orchestrator.teacher import Teacher
from tests import tiny
from tests.benchmarks.ratio import paired


def new_ledger(recipe: Recipe, folder: Path) -> Ledger:
    """An empty data set with its conditions."""
    prompts = read_prompts(recipe.trajectories.prompts)
    plan = make_plan(recipe, Teacher(recipe.teacher).card, prompts, 32)
    ledger = create_ledger(str(folder), plan, prompts, recipe.teacher)
    commit_conditions(ledger, 0, plan.num_conditions, "cpu", 1)
    return ledger


def bare(sampler: ShardSampler) -> None:
    """Solve every batch of the plan, and drop the result."""
    plan, ledger = sampler.plan, sampler.ledger
    conditions = read_conditions(ledger, ledger.commits()[0][CONDITIONS])
    teacher, config = sampler.teacher.denoiser(), sampler.teacher.card.scheduler
    for shard in plan.shards():
        for ids in plan.batches(shard):
            cond = conditions.rows(torch.tensor([plan.sample_condition(i) for i in ids]))
            scale = torch.tensor([plan.sample_guidance(i) for i in ids])
            guided = GuidedTeacher(teacher, cond, conditions.uncond, scale)
            noise = torch.randn(len(ids), *plan.latent_shape)
            sample_path(SOLVERS[plan.solver], config, guided, noise, plan.num_inference_steps)


def factory(sampler: ShardSampler, revision: int) -> None:
    """Make every shard as an actor does, each written while the next is sampled."""
    with ThreadPoolExecutor(IN_FLIGHT) as threads:
        list(threads.map(lambda shard: sampler.make(shard.name, revision), sampler.plan.shards()))


def main(teacher: str, shards: int, repeats: int) -> None:
    """Measure and print."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        data = tiny.recipe_data(Path(folder))
        told = {"samples": 64 * shards, "num_inference_steps": 20, "batch_size": 32, "shard_size": 64}
        data["trajectories"] = {"prompts": str(tiny.prompts(Path(folder))), "guidance_scale": [2.0, 4.0], **told}
        if teacher:
            data["teacher"] = {"folder": teacher}
        sampler = ShardSampler(new_ledger(Recipe.model_validate(data), Path(folder) / "store"), "cpu", 1)
        revisions = itertools.count()
        samples = sampler.plan.samples
        result = paired(lambda: bare(sampler), lambda: factory(sampler, next(revisions)), samples, repeats)
    print(json.dumps({"benchmark": "factory", **result, "bytes": sampler.plan.total_bytes, "compute": sampler.compute}))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--teacher", default="", help="a diffusers folder; a tiny random one by default")
    parser.add_argument("--shards", type=int, default=4)
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()
    main(args.teacher, args.shards, args.repeats)
