"""Says what a run would make and what that takes, before anything is made."""

from __future__ import annotations

from fewstep.orchestrator.compute.tasks import run_task
from fewstep.orchestrator.datasets.commit_log import count_committed
from fewstep.orchestrator.datasets.plan import DatasetPlan
from fewstep.orchestrator.datasets.sources import check_sources, dataset_kinds
from fewstep.orchestrator.evaluation.reference_statistics import check_evaluation
from fewstep.orchestrator.generation.data_sets import SINGLE_WRITER, image_plan_of, plan_of
from fewstep.orchestrator.observability.console import print_facts
from fewstep.orchestrator.planning.calibration import seconds_per_batch
from fewstep.orchestrator.planning.forecast import forecast, memory_facts, memory_of
from fewstep.orchestrator.planning.store_access import check_nodes, check_space
from fewstep.orchestrator.recipe.recipe import Recipe
from fewstep.orchestrator.recipe.section import Json
from fewstep.orchestrator.teachers.skeleton import has_configuration
from fewstep.orchestrator.workflow.round_data import sampling_recipe, store_of


def plan(recipe: Recipe, price: float = 0.0, *, offline: bool = False) -> Json:
    """What would be generated, what that takes and what training holds; `price` is of one device's hour.

    Offline it says what configurations alone tell: nothing is timed, and no weights are loaded.
    """
    check_sources(recipe)
    check_evaluation(recipe.evaluation)
    warning = {"warning": SINGLE_WRITER} if recipe.trajectories.single_writer else {}
    if offline:
        facts = {**forecast(recipe), **warning}
    else:
        facts = {**plan_round_data(recipe, price), **_plan_memory(recipe), **warning}
    print_facts(facts)
    return facts


def plan_round_data(recipe: Recipe, price: float) -> Json:
    """What would be made for the first round, and what that takes; `price` is of one device's hour."""
    kinds = dataset_kinds(recipe, recipe.method.build().rounds()[0]).values()
    return {
        **(_plan_trajectories(recipe, price) if "trajectories" in kinds else {}),
        **(_plan_images(recipe) if "images" in kinds else {}),
        **({"imported": recipe.data.imported} if "imported" in kinds else {}),
    }


def _plan_trajectories(recipe: Recipe, price: float) -> Json:
    sampling, store = sampling_recipe(recipe, 0, recipe.teacher), store_of(recipe)
    planned = plan_of(sampling, store)
    committed = _committed(recipe, planned)
    seconds = seconds_per_batch(sampling, planned)
    hours = seconds * sum(len(planned.batches(shard)) for shard in planned.shards()[committed:]) / 3600
    return {
        "plan_hash": planned.hash,
        "rows": planned.samples,
        "bytes": planned.total_bytes,
        "shards": len(planned.shards()),
        "teacher_evaluations": planned.teacher_evaluations,
        "committed": committed,
        "batch_size": planned.batch_size,
        "seconds_per_batch": round(seconds, 3),
        "device_hours": round(hours, 4),
        "wall_hours": round(hours / recipe.resources.generators, 4),
        **({"cost": round(hours * price, 2)} if price else {}),
    }


def _plan_images(recipe: Recipe) -> Json:
    planned, _ = image_plan_of(recipe)
    return {
        "images_plan_hash": planned.hash,
        "images": planned.samples,
        "images_bytes": planned.total_bytes,
        "images_shards": len(planned.shards()),
        "images_committed": _committed(recipe, planned),
    }


def _plan_memory(recipe: Recipe) -> Json:
    """What a training worker holds, where there is training and the teacher has a configuration that tells."""
    if not (recipe.has_training and has_configuration(recipe.teacher)):
        return {}
    return memory_facts(run_task(memory_of, recipe.resources, recipe))


def _committed(recipe: Recipe, planned: DatasetPlan) -> int:
    """Shards that are there, once it is clear that the others can be."""
    store = store_of(recipe)
    committed = count_committed(store, planned)
    check_space(store, planned, committed)
    check_nodes(store, recipe.resources)
    return committed
