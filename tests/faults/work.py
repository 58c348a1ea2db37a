"""A data set whose rows need no teacher, and a driver that makes it: for faults that have nothing to do with either."""

from __future__ import annotations

from collections.abc import Iterable

import torch

from fewstep.orchestrator.datasets.commit_log import Ledger, create_ledger
from fewstep.orchestrator.datasets.manifest import CONDITIONS, Commit, Manifest
from fewstep.orchestrator.datasets.plan import Plan
from fewstep.orchestrator.datasets.shard_file import Columns
from fewstep.orchestrator.generation.shard_makers import scalars
from fewstep.orchestrator.recipe.teacher import TeacherSpec
from tests.orchestrator.test_plan import PLAN as WHOLE

PLAN = WHOLE.model_copy(update={"latent_shape": (2, 2, 2), "samples": 28, "shard_size": 8})
SHARDS = [shard.name for shard in PLAN.shards()]
TEACHER = TeacherSpec(folder="nowhere")
COMPUTE: dict[str, str | int] = {"device": "test", "torch": "test"}


def rows(plan: Plan, name: str) -> Columns:
    """A shard's rows, a function of the plan and their ids."""
    ids = next(shard.samples for shard in plan.shards() if shard.name == name)
    path = torch.tensor(ids).half().view(-1, 1, 1, 1, 1).expand(-1, *plan.path_shape(0))
    return {**scalars(plan, ids), "path": path.contiguous()}


def opened(url: str) -> Ledger:
    """The data set, new or continued."""
    return create_ledger(url, PLAN, [str(i) for i in range(PLAN.num_prompts)], TEACHER)


def commit(ledger: Ledger, name: str, revision: int = 0) -> Commit:
    """Make one shard."""
    return ledger.commit(name, revision, rows(ledger.plan, name), {"times": [1.0] * 5}, COMPUTE)


def drive(ledger: Ledger, names: Iterable[str] = SHARDS) -> Manifest:
    """Make what is missing and publish it, as `generate` does."""
    commits, broken = ledger.commits()
    assert not broken
    if CONDITIONS not in commits:
        ids = torch.arange(-1, PLAN.num_conditions)
        columns = {"condition_id": ids, "prompt": ids.half()[:, None]}
        commits[CONDITIONS] = ledger.commit(CONDITIONS, 0, columns, {}, COMPUTE)
    for name in names:
        if name not in commits:
            commits[name] = commit(ledger, name)
    return ledger.publish(commits)


def check(ledger: Ledger, content_hash: str) -> None:
    """Every planned sample is there exactly once, as it was hashed and as an undisturbed run makes it."""
    found = ledger.verify()
    assert found.broken == () and found.content_hash == content_hash
    assert [commit.name for commit in ledger.newest().shards] == SHARDS
    ids = [i for commit in ledger.newest().shards for i in ledger.reader(commit).read()["sample_id"].tolist()]
    assert ids == list(range(PLAN.samples))
    assert sorted(name for name in ledger.revisions() if name != CONDITIONS) == SHARDS
    assert set(ledger.revisions().values()) == {0}
