"""From a recipe to a data set: plan, conditions, a pool of sampling actors, a manifest. The driver loads no model."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeVar, cast

import ray
from ray.actor import ActorHandle
from ray.exceptions import RayTaskError

from orchestrator.cluster import bundle, connect, require
from orchestrator.console import progress, say
from orchestrator.errors import BadInput
from orchestrator.ledger import CONDITIONS, Commit, Ledger, create_ledger, open_ledger
from orchestrator.plan import Plan, make_plan, read_prompts
from orchestrator.pool import IN_FLIGHT, Pool
from orchestrator.recipe import Recipe, Resources
from orchestrator.teacher import Teacher, TeacherCard

Answer = TypeVar("Answer")
Report = Callable[[int, Mapping[str, float]], None]  # step, and values named as in the metrics registry


@dataclass(frozen=True)
class Quarantined:
    """A shard that was set aside."""

    shard: str
    why: str


@dataclass(frozen=True)
class Generated:
    """A published version of a data set."""

    place: str
    version: int
    content_hash: str
    shards: int
    rows: int
    quarantined: tuple[Quarantined, ...]  # not in it; another `generate` tries them again


def silent(step: int, values: Mapping[str, float]) -> None:
    """Report nothing."""


def describe_teacher(recipe: Recipe) -> TeacherCard:
    """The card of the recipe's teacher, read on the cluster, once all of the recipe is known to fit it."""
    connect(recipe.resources)
    return _ask(_describe, recipe.resources, recipe)


def plan_of(recipe: Recipe) -> Plan:
    """The plan that a recipe means; its teacher is read on the cluster."""
    prompts = read_prompts(recipe.trajectories.prompts)
    return make_plan(recipe, describe_teacher(recipe), prompts)


def generate(recipe: Recipe, store_url: str, report: Report = silent) -> Generated:
    """Make what is missing of the recipe's data set in a store, and publish it.

    Raises BadInput where the place or the teacher will not do, or the disk is full; the same call continues.
    """
    told, resources = recipe.trajectories, recipe.resources
    connect(resources)
    require(resources, [bundle(resources)] * resources.generators, "resources.generators")
    prompts = read_prompts(told.prompts)
    plan = make_plan(recipe, describe_teacher(recipe), prompts)
    if told.single_writer:
        say("trajectories.single_writer: two drivers on this store are not kept apart; never run a second one")
    ledger = create_ledger(store_url, plan, prompts, recipe.teacher, single_writer=told.single_writer)
    commits, broken = ledger.commits()
    for record in broken:
        raise BadInput(f"{record.shard} of {ledger.url}: {record.why}; mend it with `fewstep repair {ledger.url}`")
    missing = {shard.id: 0 for shard in plan.shards() if shard.name not in commits}
    if CONDITIONS not in commits:
        say(f"encoding {plan.num_conditions} prompts")
        commits[CONDITIONS] = _ask(_encode, resources, ledger.url, 0, resources)
    factory = Factory(ledger, resources, told.deadline_s, told.attempts, report)
    return factory.finish(commits, missing)


def repair(place: str, resources: Resources, *, deadline_s: float = 3600.0, attempts: int = 3) -> Generated:
    """Make again just what is broken of a data set, and publish it as a new version.

    On the same compute its content hash is the old one; else `Manifest.changed` names the shards that differ.
    """
    ledger = open_ledger(place)
    commits, damaged = ledger.commits()
    broken = {record.shard: record.why for record in damaged}
    broken |= {name: why for name, commit in commits.items() if (why := ledger.check(commit))}
    for name, why in broken.items():
        say(f"{name} {why}; making it again")
    revisions = {name: ledger.revisions()[name] + 1 for name in broken}
    if broken:
        connect(resources)
    if CONDITIONS in broken:
        commits[CONDITIONS] = _ask(_encode, resources, ledger.url, revisions.pop(CONDITIONS), resources)
    whole = {name: commit for name, commit in commits.items() if name not in revisions}
    missing = {int(name): revision for name, revision in revisions.items()}
    return Factory(ledger, resources, deadline_s, attempts, silent).finish(whole, missing)


class Factory:
    """Runs a pool of sampling actors over the missing shards of a data set."""

    def __init__(self, ledger: Ledger, resources: Resources, deadline_s: float, attempts: int, report: Report) -> None:
        self.ledger, self.plan = ledger, ledger.plan
        self._resources, self._deadline_s, self._attempts, self._report = resources, deadline_s, attempts, report

    def finish(self, commits: dict[str, Commit], missing: Mapping[int, int]) -> Generated:
        """Make the missing shards, given with the revision to commit them as, and publish them with the others."""
        size = min(self._resources.generators, len(missing))
        pool = Pool(lambda: self._spawn(missing), size, self._deadline_s, self._attempts)
        if missing:
            self._follow(pool, sorted(missing), commits)
        planned = self.plan.shards()
        quarantined = tuple(Quarantined(planned[id].name, why) for id, why in sorted(pool.quarantined.items()))
        if len(commits) == 1:  # the conditions
            raise RuntimeError(f"no shard could be made; shard {quarantined[0].shard}: {quarantined[0].why}")
        manifest = self.ledger.publish(commits)
        return Generated(
            self.ledger.url, manifest.version, manifest.content_hash, len(manifest.shards), manifest.rows, quarantined
        )

    def _follow(self, pool: Pool, shards: list[int], commits: dict[str, Commit]) -> None:
        """Take the commits as they come, and show and report how far it is."""
        planned = self.plan.shards()
        missing = sum(len(planned[id].samples) for id in shards)
        retried = 0
        with progress("sampling trajectories", self.plan.samples, self.plan.samples - missing) as bar:
            for commit in pool.run(shards):
                commits[commit.name] = commit
                bar.advance(commit.file.rows)
                failures = sum(pool.failures.values())
                values = {
                    "generate/samples": commit.file.rows,
                    "generate/teacher_evaluations": commit.file.rows * self.plan.evaluations_per_sample,
                    "generate/bytes": commit.file.bytes,
                    "generate/shards_planned": len(planned),
                    "generate/shards_committed": len(commits) - 1,
                    "generate/shards_retried": failures - retried,
                    "generate/shards_quarantined": len(pool.quarantined),
                }
                self._report(len(commits) - 1, values)
                retried = failures

    def _spawn(self, revisions: Mapping[int, int]) -> ActorHandle:
        actor = ray.remote(SamplingActor).options(
            max_restarts=0, max_concurrency=IN_FLIGHT, **_options(self._resources)
        )
        return cast(ActorHandle, actor.remote(self.ledger.url, dict(revisions), self._resources))


class SamplingActor:
    """A ShardSampler in a process of its own."""

    def __init__(self, place: str, revisions: Mapping[int, int], resources: Resources) -> None:
        self._place, self._revisions, self._resources = place, revisions, resources

    def start(self) -> None:
        """Load the teacher; here and not in __init__, whose errors Ray turns into the actor's death."""
        from orchestrator.sampler import ShardSampler

        resources = self._resources
        self._sampler = ShardSampler(open_ledger(self._place), device_of(resources), resources.threads_per_worker)

    def make(self, shard: int) -> Commit:
        """Sample, write and commit a shard."""
        return self._sampler.make(shard, self._revisions[shard])


def device_of(resources: Resources) -> str:
    """The torch device of the recipe's workers."""
    return "cuda" if resources.gpus_per_worker else "cpu"


def _options(resources: Resources) -> dict[str, float]:
    return {"num_cpus": resources.cpus_per_worker, "num_gpus": resources.gpus_per_worker}


def _describe(recipe: Recipe) -> TeacherCard:
    from orchestrator.preflight import preflight

    teacher = Teacher(recipe.teacher)
    preflight(recipe, teacher)
    return teacher.card


def _encode(place: str, revision: int, resources: Resources) -> Commit:
    from orchestrator.sampler import commit_conditions

    return commit_conditions(open_ledger(place), revision, device_of(resources), resources.threads_per_worker)


def _ask(task: Callable[..., Answer], resources: Resources, *arguments: object) -> Answer:
    """What a function returns on the cluster, with one worker's resources. Its BadInput comes back as itself."""
    require(resources, [bundle(resources)], "resources.cpus_per_worker")
    try:
        return ray.get(ray.remote(task).options(**_options(resources)).remote(*arguments))
    except RayTaskError as error:
        if isinstance(error.cause, BadInput):
            raise error.cause from None
        raise
