"""Checks that a store has room, and that every node of the cluster can read and write it."""

from __future__ import annotations

import uuid
from pathlib import Path

import ray
from ray.exceptions import RayTaskError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from fewstep.orchestrator.datasets.plan import DatasetPlan
from fewstep.orchestrator.errors import BadInput
from fewstep.orchestrator.recipe.resources import Resources
from fewstep.orchestrator.storage.urls import open_store


def check_space(store: str, plan: DatasetPlan, committed: int) -> None:
    """Raises BadInput where the store has no room for what is missing of a plan."""
    need = plan.total_bytes * (1 - committed / len(plan.shards()))
    free = open_store(store).free_bytes()
    if need > free:
        raise BadInput(
            f"trajectories.store: {store} has {free / 1e9:.1f} GB free and {need / 1e9:.1f} GB are to come; "
            "choose another place, or fewer trajectories.samples"
        )


def check_nodes(store: str, resources: Resources) -> None:
    """Raises BadInput, naming it, for a node that cannot read and write the store, or sees another one."""
    url = _existing(store)
    key, opened = f"fewstep-probe-{uuid.uuid4().hex}", open_store(url)
    try:
        opened.write(key, b"seen")
    except OSError as error:
        raise BadInput(f"trajectories.store: {url} cannot be written ({error}); choose another place") from error
    nodes = {str(node["NodeID"]): str(node["NodeManagerAddress"]) for node in ray.nodes() if node["Alive"]}
    try:
        for id, address in nodes.items():
            where = NodeAffinitySchedulingStrategy(id, soft=False)
            try:
                ray.get(ray.remote(_probe).options(num_cpus=0, scheduling_strategy=where).remote(url, key))
            except RayTaskError as error:
                raise BadInput(f"trajectories.store: node {address} cannot use {url}: {error.cause}") from None
    finally:
        opened.delete(key)


def _probe(url: str, key: str) -> None:
    store = open_store(url)
    try:
        store.read(key)
    except FileNotFoundError:
        raise BadInput("what another node wrote there is not there; it needs a place that all nodes share") from None
    ours = f"fewstep-probe-{uuid.uuid4().hex}"
    store.write(ours, b"seen")
    store.delete(ours)


def _existing(store: str) -> str:
    """The store, or for a folder that is not there yet the one that it will be made in."""
    if store.startswith("s3://"):
        return store
    folder = Path(store).expanduser().resolve()
    return str(next(path for path in (folder, *folder.parents) if path.is_dir()))
