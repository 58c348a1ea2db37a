"""One function on one worker."""

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
    """What a function returns on the cluster, with one worker's resources. Its BadInput comes back as itself."""
    require(resources, [worker_bundle(resources)], "resources.cpus_per_worker")
    with unwrap_bad_input():
        return ray.get(ray.remote(task).options(**options(resources)).remote(*arguments))


@contextmanager
def unwrap_bad_input() -> Iterator[None]:
    """A BadInput that was raised on the cluster comes back as itself."""
    try:
        yield
    except RayTaskError as error:
        if isinstance(error.cause, BadInput):
            raise error.cause from None
        raise


def options(resources: Resources) -> dict[str, Any]:
    """What one worker holds, as Ray's tasks and actors are told it; never out of the caller's own placement group."""
    return {
        "num_cpus": resources.cpus_per_worker,
        "num_gpus": resources.gpus_per_worker,
        "scheduling_strategy": "DEFAULT",
    }


def device_of(resources: Resources) -> str:
    """The torch device of the recipe's workers."""
    return "cuda" if resources.gpus_per_worker else "cpu"
