"""A data set whose rows need no teacher, and a driver that makes it: for faults that have nothing to do with either."""

from __future__ import annotations

from collections.abc import Iterable

import torch

from fewstep.orchestrator.datasets.commit_log import CommitLog, create_commit_log
from fewstep.orchestrator.datasets.manifest import CONDITIONS, Commit, Manifest
from fewstep.orchestrator.datasets.plan import Plan
from fewstep.orchestrator.datasets.shard_file import Columns
from fewstep.orchestrator.generation.shard_makers import scalars
from fewstep.orchestrator.recipe.teacher import TeacherSpec
from tests.support.plan import PLAN as WHOLE

PLAN = WHOLE.model_copy(update={"latent_shape": (2, 2, 2), "samples": 28, "shard_size": 8})
SHARDS = [shard.name for shard in PLAN.shards()]
TEACHER = TeacherSpec(folder="nowhere")
COMPUTE: dict[str, str | int] = {"device": "test", "torch": "test"}


def rows(plan: Plan, name: str) -> Columns:
    """A shard's rows, a function of the plan and their ids."""
    ids = next(shard.samples for shard in plan.shards() if shard.name == name)
    path = torch.tensor(ids).half().view(-1, 1, 1, 1, 1).expand(-1, *plan.path_shape(0))
    return {**scalars(plan, ids), "path": path.contiguous()}


def opened(url: str) -> CommitLog:
    """The data set, new or continued."""
    return create_commit_log(url, PLAN, [str(i) for i in range(PLAN.num_prompts)], TEACHER)


def commit(commit_log: CommitLog, name: str, revision: int = 0) -> Commit:
    """Make one shard."""
    return commit_log.commit(name, revision, rows(commit_log.plan, name), {"times": [1.0] * 5}, COMPUTE)


def drive(commit_log: CommitLog, names: Iterable[str] = SHARDS) -> Manifest:
    """Make what is missing and publish it, as `generate` does."""
    commits, broken = commit_log.commits()
    assert not broken
    if CONDITIONS not in commits:
        ids = torch.arange(-1, PLAN.num_conditions)
        columns = {"condition_id": ids, "prompt": ids.half()[:, None]}
        commits[CONDITIONS] = commit_log.commit(CONDITIONS, 0, columns, {}, COMPUTE)
    for name in names:
        if name not in commits:
            commits[name] = commit(commit_log, name)
    return commit_log.publish(commits)


def check(commit_log: CommitLog, content_hash: str) -> None:
    """Every planned sample is there exactly once, as it was hashed and as an undisturbed run makes it."""
    found = commit_log.verify()
    assert found.broken == () and found.content_hash == content_hash
    assert [commit.name for commit in commit_log.newest().shards] == SHARDS
    ids = [i for commit in commit_log.newest().shards for i in commit_log.reader(commit).read()["sample_id"].tolist()]
    assert ids == list(range(PLAN.samples))
    assert sorted(name for name in commit_log.revisions() if name != CONDITIONS) == SHARDS
    assert set(commit_log.revisions().values()) == {0}
