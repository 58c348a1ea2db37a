"""Runs actors over the missing shards of a data set, and publishes what they commit."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import cast

import ray
from ray.actor import ActorHandle

from fewstep.orchestrator.compute.actor_pool import IN_FLIGHT, ActorPool
from fewstep.orchestrator.compute.tasks import device_of, options
from fewstep.orchestrator.datasets.captioned_plans import ImagePlan, ImportPlan
from fewstep.orchestrator.datasets.commit_log import CommitLog, open_commit_log
from fewstep.orchestrator.datasets.manifest import Commit
from fewstep.orchestrator.datasets.plan import Plan
from fewstep.orchestrator.observability.console import progress
from fewstep.orchestrator.recipe.resources import Resources

Report = Callable[[int, Mapping[str, float]], None]  # step, and values named as in the metrics registry


@dataclass(frozen=True)
class QuarantinedShard:
    """A shard that could not be made."""

    shard: str
    why: str


@dataclass(frozen=True)
class Generated:
    """A published version of a data set."""

    url: str
    version: int
    content_hash: str
    shards: int
    rows: int
    quarantined: tuple[QuarantinedShard, ...]  # not in it; another `generate` tries them again


def silent(step: int, values: Mapping[str, float]) -> None:
    """Report nothing."""


class Factory:
    """Runs a pool of actors over the missing shards of a data set."""

    def __init__(
        self, commit_log: CommitLog, resources: Resources, deadline_s: float, attempts: int, report: Report
    ) -> None:
        self.commit_log, self.plan = commit_log, commit_log.plan
        self._resources, self._deadline_s, self._attempts, self._report = resources, deadline_s, attempts, report

    def finish(self, commits: dict[str, Commit], missing: Mapping[str, int]) -> Generated:
        """Make the missing shards, given with the revision to commit them as, and publish the plan's."""
        size = min(self._resources.generators, len(missing))
        pool = ActorPool(lambda: self._spawn(missing), size, self._deadline_s, self._attempts)
        if missing:
            self._follow(pool, sorted(missing), commits)
        quarantined = tuple(QuarantinedShard(name, why) for name, why in sorted(pool.quarantined.items()))
        if len(commits) == 1:  # the conditions
            raise RuntimeError(f"no shard could be made; shard {quarantined[0].shard}: {quarantined[0].why}")
        manifest = self.commit_log.publish(commits)
        return Generated(
            self.commit_log.url,
            manifest.version,
            manifest.content_hash,
            len(manifest.shards),
            manifest.rows,
            quarantined,
        )

    def _follow(self, pool: ActorPool, missing: list[str], commits: dict[str, Commit]) -> None:
        """Take the commits as they come, and show and report how far it is."""
        planned = [shard.name for shard in self.plan.shards()]
        done = sum(commits[name].file.rows for name in planned if name in commits)
        num_commits, num_rows, began = sum(name in commits for name in planned), 0, time.monotonic()

        def standing() -> dict[str, float]:
            return {
                "generate/shards_planned": len(planned),
                "generate/shards_committed": num_commits,
                "generate/shards_retried": sum(pool.failures.values()),
                "generate/shards_quarantined": len(pool.quarantined),
            }

        doing = {Plan: "sampling trajectories", ImagePlan: "encoding images", ImportPlan: "importing samples"}
        with progress(doing[type(self.plan)], self.plan.samples, done) as bar:
            self._report(num_commits, standing())
            for commit in pool.run(missing):
                commits[commit.name] = commit
                rows = commit.file.rows
                num_commits, num_rows = num_commits + 1, num_rows + rows
                bar.advance(rows)
                values = {
                    "generate/samples": rows,
                    "generate/samples_per_s": num_rows / (time.monotonic() - began),
                    "generate/teacher_evaluations": rows * self.plan.evaluations_per_sample,
                    "generate/bytes": commit.file.bytes,
                }
                self._report(num_commits, values | standing())
            self._report(num_commits, standing())  # what was given up after the last commit

    def _spawn(self, revisions: Mapping[str, int]) -> ActorHandle:
        actor = ray.remote(SamplingActor).options(max_restarts=0, max_concurrency=IN_FLIGHT, **options(self._resources))
        return cast(ActorHandle, actor.remote(self.commit_log.url, dict(revisions), self._resources))


class SamplingActor:
    """A ShardMaker in a process of its own."""

    def __init__(self, url: str, revisions: Mapping[str, int], resources: Resources) -> None:
        self._url, self._revisions, self._resources = url, revisions, resources

    def start(self) -> str:
        """Load the teacher, and say on which node; not in __init__, whose errors Ray turns into the actor's death."""
        from fewstep.orchestrator.generation.shard_makers import maker_of

        resources = self._resources
        self._maker = maker_of(open_commit_log(self._url), device_of(resources), resources.threads_per_worker)
        return ray.get_runtime_context().get_node_id()

    def make(self, shard: str) -> Commit:
        """Make, write and commit a shard."""
        return self._maker.make(shard, self._revisions[shard])
