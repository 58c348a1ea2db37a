"""From a recipe to a data set: plan, conditions, a pool of actors, a manifest. The driver loads no model."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import cast

import ray
from ray.actor import ActorHandle

from orchestrator.calibrate import check_nodes, check_space, recorded_batch_size, settled_batch_size
from orchestrator.cluster import ask, bundle, connect, device_of, options, require
from orchestrator.commits import CONDITIONS, Commit
from orchestrator.console import progress, say
from orchestrator.errors import BadInput
from orchestrator.images import captions_of, open_images
from orchestrator.imported import open_samples
from orchestrator.ledger import Ledger, count_committed, create_ledger, open_ledger
from orchestrator.plan import (
    DatasetPlan,
    ImagePlan,
    ImportPlan,
    Plan,
    Shard,
    make_image_plan,
    make_import_plan,
    make_plan,
)
from orchestrator.pool import IN_FLIGHT, Pool
from orchestrator.prompts import read_prompts
from orchestrator.recipe import Recipe, Resources
from orchestrator.teacher import Teacher, TeacherCard

SINGLE_WRITER = "trajectories.single_writer: two drivers on this store are not kept apart; never run a second one"
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
    return ask(_describe, recipe.resources, recipe)


def plan_of(recipe: Recipe, store_url: str) -> Plan:
    """The plan that a recipe means; its teacher is read, and a batch size is found, on the cluster."""
    prompts = read_prompts(recipe.trajectories.prompts, column=recipe.trajectories.prompt_column)
    card = describe_teacher(recipe)
    return make_plan(recipe, card, prompts, settled_batch_size(recipe, card, prompts, store_url))


def image_plan_of(recipe: Recipe) -> tuple[ImagePlan, list[str]]:
    """The plan of a recipe's real images, and their distinct captions; their teacher is read on the cluster."""
    images = open_images(recipe.data.images, "data.images")
    captions = captions_of(images, recipe.data.caption_column)
    return make_image_plan(recipe, describe_teacher(recipe), images, captions), list(dict.fromkeys(captions))


def generate(recipe: Recipe, store_url: str, report: Report = silent) -> Generated:
    """Make what is missing of the recipe's data set in a store, and publish it.

    Raises BadInput where the place or the teacher will not do, or the disk is full; the same call continues.
    """
    told, resources = recipe.trajectories, recipe.resources
    _check_room(recipe)
    prompts = read_prompts(told.prompts, column=told.prompt_column)
    card = describe_teacher(recipe)
    check_nodes(store_url, resources)
    plan = make_plan(recipe, card, prompts, recorded_batch_size(recipe, card, prompts, store_url))
    return _complete(recipe, plan, prompts, store_url, report)


def encode_images(recipe: Recipe, store_url: str, report: Report = silent) -> Generated:
    """As `generate`, of the recipe's real images instead of its teacher's samples."""
    _check_room(recipe)
    plan, captions = image_plan_of(recipe)
    check_nodes(store_url, recipe.resources)
    return _complete(recipe, plan, captions, store_url, report)


def import_samples(recipe: Recipe, place: str, store_url: str) -> Generated:
    """Take samples that the recipe's teacher made elsewhere over into a store; the same call continues.

    Raises BadInput for files that are no samples of this teacher.
    """
    if len(recipe.teacher.sizes) > 1:
        raise BadInput(f"teacher.resolution has {len(recipe.teacher.sizes)} sizes, and what is imported one; give one")
    _check_room(recipe)
    samples = open_samples(place)
    captions = samples.captions("")
    plan = make_import_plan(recipe, describe_teacher(recipe), samples, captions)
    check_nodes(store_url, recipe.resources)
    return _complete(recipe, plan, list(dict.fromkeys(captions)), store_url, silent)


def imported(recipe: Recipe) -> Generated:
    """The data set that `data.imported` names. Raises BadInput where another teacher made it."""
    ledger = open_ledger(recipe.data.imported)
    if ledger.plan.teacher != describe_teacher(recipe).dump():
        raise BadInput(f"data.imported: {ledger.url} is of another teacher; import the samples again for this one")
    found = ledger.newest()
    return Generated(ledger.url, found.version, found.content_hash, len(found.shards), found.rows, ())


def _check_room(recipe: Recipe) -> None:
    resources = recipe.resources
    connect(resources)
    require(resources, [bundle(resources)] * resources.first_generators, "resources.generators")


def _complete(recipe: Recipe, plan: DatasetPlan, prompts: Sequence[str], store_url: str, report: Report) -> Generated:
    told, resources = recipe.trajectories, recipe.resources
    check_space(store_url, plan, count_committed(store_url, plan))
    if told.single_writer:
        say(SINGLE_WRITER)
    ledger = create_ledger(store_url, plan, prompts, recipe.teacher, single_writer=told.single_writer)
    commits, broken = ledger.commits()
    for record in broken:
        raise BadInput(f"{record.shard} of {ledger.url}: {record.why}; mend it with `fewstep repair {ledger.url}`")
    missing = {shard.name: 0 for shard in plan.shards() if shard.name not in commits}
    if CONDITIONS not in commits or commits[CONDITIONS].file.rows <= plan.num_conditions:  # the null condition is one
        say(f"encoding {plan.num_conditions} prompts")
        revision = ledger.revisions().get(CONDITIONS, -1) + 1
        commits[CONDITIONS] = ask(_encode, resources, ledger.url, revision, plan.num_conditions, resources)
    factory = Factory(ledger, resources, told.deadline_s, told.attempts, report)
    return factory.finish(commits, missing)


def repair(place: str, resources: Resources, *, deadline_s: float = 3600.0, attempts: int = 3) -> Generated:
    """Make again just what is broken of a data set, and publish it as a new version.

    On the same compute its content hash is the old one; else `Manifest.changed` names the shards that differ.
    """
    ledger = open_ledger(place).as_published()
    commits, damaged = ledger.commits()
    broken = {record.shard: record.why for record in damaged}
    broken |= {name: why for name, commit in commits.items() if (why := ledger.check(commit))}
    for name, why in broken.items():
        say(f"{name} {why}; making it again")
    revisions = {name: ledger.revisions()[name] + 1 for name in broken}
    if broken:
        connect(resources)
        check_images(ledger.plan)
    if CONDITIONS in broken:
        longest = max(Shard.named(name).samples.stop for name in {*commits, *broken} - {CONDITIONS})
        count = ledger.plan.model_copy(update={"samples": longest}).num_conditions
        commits[CONDITIONS] = ask(_encode, resources, ledger.url, revisions.pop(CONDITIONS), count, resources)
    whole = {name: commit for name, commit in commits.items() if name not in revisions}
    return Factory(ledger, resources, deadline_s, attempts, silent).finish(whole, revisions)


def check_images(plan: DatasetPlan) -> None:
    """Raises BadInput where the images that a plan was made for are no longer those."""
    if isinstance(plan, ImagePlan) and open_images(plan.images, "data.images").digest() != plan.images_sha256:
        raise BadInput(f"data.images: {plan.images} does not hold the images that were encoded; put those back")
    if isinstance(plan, ImportPlan) and open_samples(plan.imported_from).digest() != plan.imported_sha256:
        raise BadInput(f"import: {plan.imported_from} does not hold the samples that were imported; put those back")


class Factory:
    """Runs a pool of actors over the missing shards of a data set."""

    def __init__(self, ledger: Ledger, resources: Resources, deadline_s: float, attempts: int, report: Report) -> None:
        self.ledger, self.plan = ledger, ledger.plan
        self._resources, self._deadline_s, self._attempts, self._report = resources, deadline_s, attempts, report

    def finish(self, commits: dict[str, Commit], missing: Mapping[str, int]) -> Generated:
        """Make the missing shards, given with the revision to commit them as, and publish the plan's."""
        size = min(self._resources.generators, len(missing))
        pool = Pool(lambda: self._spawn(missing), size, self._deadline_s, self._attempts)
        if missing:
            self._follow(pool, sorted(missing), commits)
        quarantined = tuple(Quarantined(name, why) for name, why in sorted(pool.quarantined.items()))
        if len(commits) == 1:  # the conditions
            raise RuntimeError(f"no shard could be made; shard {quarantined[0].shard}: {quarantined[0].why}")
        manifest = self.ledger.publish(commits)
        return Generated(
            self.ledger.url, manifest.version, manifest.content_hash, len(manifest.shards), manifest.rows, quarantined
        )

    def _follow(self, pool: Pool, missing: list[str], commits: dict[str, Commit]) -> None:
        """Take the commits as they come, and show and report how far it is."""
        planned = [shard.name for shard in self.plan.shards()]
        done = sum(commits[name].file.rows for name in planned if name in commits)
        made, sampled, began = sum(name in commits for name in planned), 0, time.monotonic()

        def standing() -> dict[str, float]:
            return {
                "generate/shards_planned": len(planned),
                "generate/shards_committed": made,
                "generate/shards_retried": sum(pool.failures.values()),
                "generate/shards_quarantined": len(pool.quarantined),
            }

        doing = {Plan: "sampling trajectories", ImagePlan: "encoding images", ImportPlan: "importing samples"}
        with progress(doing[type(self.plan)], self.plan.samples, done) as bar:
            self._report(made, standing())
            for commit in pool.run(missing):
                commits[commit.name] = commit
                rows = commit.file.rows
                made, sampled = made + 1, sampled + rows
                bar.advance(rows)
                values = {
                    "generate/samples": rows,
                    "generate/samples_per_s": sampled / (time.monotonic() - began),
                    "generate/teacher_evaluations": rows * self.plan.evaluations_per_sample,
                    "generate/bytes": commit.file.bytes,
                }
                self._report(made, values | standing())
            self._report(made, standing())  # what was given up after the last commit

    def _spawn(self, revisions: Mapping[str, int]) -> ActorHandle:
        actor = ray.remote(SamplingActor).options(max_restarts=0, max_concurrency=IN_FLIGHT, **options(self._resources))
        return cast(ActorHandle, actor.remote(self.ledger.url, dict(revisions), self._resources))


class SamplingActor:
    """A ShardMaker in a process of its own."""

    def __init__(self, place: str, revisions: Mapping[str, int], resources: Resources) -> None:
        self._place, self._revisions, self._resources = place, revisions, resources

    def start(self) -> str:
        """Load the teacher, and say on which node; not in __init__, whose errors Ray turns into the actor's death."""
        from orchestrator.sampler import maker_of

        resources = self._resources
        self._maker = maker_of(open_ledger(self._place), device_of(resources), resources.threads_per_worker)
        return ray.get_runtime_context().get_node_id()

    def make(self, shard: str) -> Commit:
        """Make, write and commit a shard."""
        return self._maker.make(shard, self._revisions[shard])


def _describe(recipe: Recipe) -> TeacherCard:
    from orchestrator.preflight import preflight

    teacher = Teacher(recipe.teacher)
    preflight(recipe, teacher)
    return teacher.card


def _encode(place: str, revision: int, conditions: int, resources: Resources) -> Commit:
    from orchestrator.sampler import commit_conditions

    ledger = open_ledger(place)
    return commit_conditions(ledger, revision, conditions, device_of(resources), resources.threads_per_worker)
