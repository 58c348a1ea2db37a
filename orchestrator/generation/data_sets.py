"""Makes the data set that a recipe means: plan, conditions, a pool of actors, a manifest. The driver loads no model."""

from __future__ import annotations

from collections.abc import Sequence

from fewstep.orchestrator.compute.cluster import connect, require, worker_bundle
from fewstep.orchestrator.compute.tasks import device_of, run_task
from fewstep.orchestrator.datasets.captioned_plans import ImagePlan, make_image_plan, make_import_plan
from fewstep.orchestrator.datasets.commit_log import count_committed, create_commit_log, open_commit_log
from fewstep.orchestrator.datasets.manifest import CONDITIONS, Commit
from fewstep.orchestrator.datasets.plan import DatasetPlan, Plan, make_plan
from fewstep.orchestrator.errors import BadInput
from fewstep.orchestrator.generation.factory import Factory, Generated, Report, silent
from fewstep.orchestrator.inputs.images import captions_of, open_images
from fewstep.orchestrator.inputs.prompts import read_prompts
from fewstep.orchestrator.inputs.webdataset import open_samples
from fewstep.orchestrator.observability.console import say
from fewstep.orchestrator.planning.calibration import recorded_batch_size, settled_batch_size
from fewstep.orchestrator.planning.store_access import check_nodes, check_space
from fewstep.orchestrator.recipe.recipe import Recipe
from fewstep.orchestrator.recipe.resources import Resources
from fewstep.orchestrator.teachers.card import TeacherCard

SINGLE_WRITER = "trajectories.single_writer: two drivers on this store are not kept apart; never run a second one"


def describe_teacher(recipe: Recipe) -> TeacherCard:
    """The card of the recipe's teacher, read on the cluster, once all of the recipe is known to fit it."""
    connect(recipe.resources)
    card, warnings = run_task(_describe, recipe.resources, recipe)
    for warning in warnings:
        say(warning)
    return card


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
    _check_room(recipe)
    prompts = read_prompts(recipe.trajectories.prompts, column=recipe.trajectories.prompt_column)
    card = describe_teacher(recipe)
    check_nodes(store_url, recipe.resources)
    plan = make_plan(recipe, card, prompts, recorded_batch_size(recipe, card, prompts, store_url))
    return _complete(recipe, plan, prompts, store_url, report)


def encode_images(recipe: Recipe, store_url: str, report: Report = silent) -> Generated:
    """Encode the recipe's real images as `generate` samples its teacher, and publish them."""
    _check_room(recipe)
    plan, captions = image_plan_of(recipe)
    check_nodes(store_url, recipe.resources)
    return _complete(recipe, plan, captions, store_url, report)


def import_samples(recipe: Recipe, source: str, store_url: str) -> Generated:
    """Take samples that the recipe's teacher made elsewhere over into a store; the same call continues.

    Raises BadInput for files that are no samples of this teacher.
    """
    if len(recipe.teacher.sizes) > 1:
        raise BadInput(f"teacher.resolution has {len(recipe.teacher.sizes)} sizes, and what is imported one; give one")
    _check_room(recipe)
    samples = open_samples(source)
    captions = samples.captions("")
    plan = make_import_plan(recipe, describe_teacher(recipe), samples, captions)
    check_nodes(store_url, recipe.resources)
    return _complete(recipe, plan, list(dict.fromkeys(captions)), store_url, silent)


def imported(recipe: Recipe) -> Generated:
    """The data set that `data.imported` names. Raises BadInput where another teacher made it."""
    commit_log = open_commit_log(recipe.data.imported)
    if commit_log.plan.teacher != describe_teacher(recipe).dump():
        raise BadInput(f"data.imported: {commit_log.url} is of another teacher; import the samples again for this one")
    manifest = commit_log.newest()
    return Generated(
        commit_log.url, manifest.version, manifest.content_hash, len(manifest.shards), manifest.rows, quarantined=()
    )


def encode_conditions(url: str, revision: int, conditions: int, resources: Resources) -> Commit:
    """Encode and commit the first conditions of the data set at a URL, on a worker."""
    from fewstep.orchestrator.generation.shard_makers import commit_conditions

    commit_log = open_commit_log(url)
    return commit_conditions(commit_log, revision, conditions, device_of(resources), resources.threads_per_worker)


def _check_room(recipe: Recipe) -> None:
    resources = recipe.resources
    connect(resources)
    require(resources, [worker_bundle(resources)] * resources.first_generators, "resources.generators")


def _complete(recipe: Recipe, plan: DatasetPlan, prompts: Sequence[str], store_url: str, report: Report) -> Generated:
    trajectories, resources = recipe.trajectories, recipe.resources
    check_space(store_url, plan, count_committed(store_url, plan))
    if trajectories.single_writer:
        say(SINGLE_WRITER)
    commit_log = create_commit_log(store_url, plan, prompts, recipe.teacher, single_writer=trajectories.single_writer)
    commits, broken = commit_log.commits()
    for record in broken:
        raise BadInput(
            f"{record.shard} of {commit_log.url}: {record.why}; mend it with `fewstep repair {commit_log.url}`"
        )
    missing = {shard.name: 0 for shard in plan.shards() if shard.name not in commits}
    if CONDITIONS not in commits or commits[CONDITIONS].file.rows <= plan.num_conditions:  # the null condition is one
        say(f"encoding {plan.num_conditions} prompts")
        revision = commit_log.revisions().get(CONDITIONS, -1) + 1
        commits[CONDITIONS] = run_task(
            encode_conditions, resources, commit_log.url, revision, plan.num_conditions, resources
        )
    factory = Factory(commit_log, resources, trajectories.deadline_s, trajectories.attempts, report)
    return factory.finish(commits, missing)


def _describe(recipe: Recipe) -> tuple[TeacherCard, list[str]]:
    from fewstep.orchestrator.planning.preflight import preflight, warnings
    from fewstep.orchestrator.teachers.teacher import Teacher

    teacher = Teacher(recipe.teacher)
    preflight(recipe, teacher)
    return teacher.card, warnings(recipe, teacher)
