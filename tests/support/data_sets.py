"""Data sets of the tiny teacher, made in this process."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from fewstep.orchestrator.datasets.commit_log import CommitLog, create_commit_log
from fewstep.orchestrator.datasets.manifest import CONDITIONS
from fewstep.orchestrator.datasets.plan import make_plan
from fewstep.orchestrator.generation.shard_makers import ShardSampler, commit_conditions
from fewstep.orchestrator.inputs.prompts import read_prompts
from fewstep.orchestrator.recipe.recipe import Recipe
from fewstep.orchestrator.teachers.teacher import Teacher

MakeRecipe = Callable[..., Recipe]


def batch_size_of(recipe: Recipe) -> int:
    """That is told."""
    size = recipe.trajectories.batch_size
    assert size != "auto"
    return size


def new_commit_log(recipe: Recipe, store: Path | str) -> CommitLog:
    """A data set with its conditions and no shard, made in this process."""
    prompts = read_prompts(recipe.trajectories.prompts)
    plan = make_plan(recipe, Teacher(recipe.teacher).card, prompts, batch_size_of(recipe))
    commit_log = create_commit_log(str(store), plan, prompts, recipe.teacher)
    if not commit_log.has(CONDITIONS, 0):
        commit_conditions(commit_log, 0, plan.num_conditions, "cpu", 1)
    return commit_log


def fill(commit_log: CommitLog) -> None:
    """Make every shard in this process and publish them."""
    sampler = ShardSampler(commit_log, "cpu", 1)
    for shard in commit_log.plan.shards():
        sampler.make(shard.name, 0)
    commit_log.publish(commit_log.commits()[0])
