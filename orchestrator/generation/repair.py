"""Makes again what is broken of a data set, and checks that its images are still those that were encoded."""

from __future__ import annotations

from fewstep.orchestrator.compute.cluster import connect
from fewstep.orchestrator.compute.tasks import run_task
from fewstep.orchestrator.datasets.captioned_plans import ImagePlan, ImportPlan
from fewstep.orchestrator.datasets.commit_log import open_commit_log
from fewstep.orchestrator.datasets.manifest import CONDITIONS
from fewstep.orchestrator.datasets.plan import DatasetPlan, Shard
from fewstep.orchestrator.errors import BadInput
from fewstep.orchestrator.generation.data_sets import encode_conditions
from fewstep.orchestrator.generation.factory import Factory, Generated, silent
from fewstep.orchestrator.inputs.images import open_images
from fewstep.orchestrator.inputs.webdataset import open_samples
from fewstep.orchestrator.observability.console import say
from fewstep.orchestrator.recipe.resources import Resources


def repair(url: str, resources: Resources, *, deadline_s: float = 3600.0, attempts: int = 3) -> Generated:
    """Make again just what is broken of a data set, and publish it as a new version.

    On the same compute its content hash is the old one; else `Manifest.changed` names the shards that differ.
    """
    commit_log = open_commit_log(url).as_published()
    commits, damaged = commit_log.commits()
    broken = {record.shard: record.why for record in damaged}
    broken |= {name: why for name, commit in commits.items() if (why := commit_log.check(commit))}
    for name, why in broken.items():
        say(f"{name} {why}; making it again")
    revisions = {name: commit_log.revisions()[name] + 1 for name in broken}
    if broken:
        connect(resources)
        check_images(commit_log.plan)
    if CONDITIONS in broken:
        longest = max(Shard.named(name).samples.stop for name in {*commits, *broken} - {CONDITIONS})
        count = commit_log.plan.model_copy(update={"samples": longest}).num_conditions
        commits[CONDITIONS] = run_task(
            encode_conditions, resources, commit_log.url, revisions.pop(CONDITIONS), count, resources
        )
    whole = {name: commit for name, commit in commits.items() if name not in revisions}
    return Factory(commit_log, resources, deadline_s, attempts, silent).finish(whole, revisions)


def check_images(plan: DatasetPlan) -> None:
    """Raises BadInput where the images that a plan was made for are no longer those."""
    if isinstance(plan, ImagePlan) and open_images(plan.images, "data.images").digest() != plan.images_sha256:
        raise BadInput(f"data.images: {plan.images} does not hold the images that were encoded; put those back")
    if isinstance(plan, ImportPlan) and open_samples(plan.imported_from).digest() != plan.imported_sha256:
        raise BadInput(f"import: {plan.imported_from} does not hold the samples that were imported; put those back")
