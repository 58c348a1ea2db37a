"""Runs one function on one worker of the cluster."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import ray
from ray.exceptions import RayTaskError

from fewstep.orchestrator.compute.cluster import require, worker_bundle
from fewstep.orchestrator.errors import BadInput
from fewstep.orchestrator.recipe.resources import Resources

Answer = TypeVar("Answer")


def run_task(task: Callable[..., Answer], resources: Resources, *arguments: object) -> Answer:
    """Run a function on the cluster with one worker's resources, and return its answer or raise its BadInput."""
    require(resources, [worker_bundle(resources)], "resources.cpus_per_worker")
    with unwrap_bad_input():
        return ray.get(ray.remote(task).options(**options(resources)).remote(*arguments))


@contextmanager
def unwrap_bad_input() -> Iterator[None]:
    """Raise a BadInput of the cluster's as itself, not as the cause of Ray's own error."""
    try:
        yield
    except RayTaskError as error:
        if isinstance(error.cause, BadInput):
            raise error.cause from None
        raise


def options(resources: Resources) -> dict[str, Any]:
    """One worker's resources as options of Ray's tasks and actors, never out of the caller's own placement group."""
    return {
        "num_cpus": resources.cpus_per_worker,
        "num_gpus": resources.gpus_per_worker,
        "scheduling_strategy": "DEFAULT",
    }


def device_of(resources: Resources) -> str:
    """The torch device of the recipe's workers."""
    return "cuda" if resources.gpus_per_worker else "cpu"
