"""Joins or starts the Ray cluster that a run uses, and finds out what it has room for."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence

import ray

from fewstep.orchestrator.errors import BadInput
from fewstep.orchestrator.observability.console import say
from fewstep.orchestrator.recipe.resources import Resources

ResourceBundle = Mapping[str, float]  # what one actor or worker holds, like {"CPU": 1, "GPU": 1}


def connect(resources: Resources) -> None:
    """Join the cluster at `resources.address`, or start one on this machine; a second call does nothing.

    Raises BadInput where nothing listens at the address.
    """
    if ray.is_initialized():
        return
    quiet = {"logging_level": "ERROR", "log_to_driver": False}
    if not resources.address:
        # Its own, whatever else runs here. Shards and checkpoints never pass through its object store.
        ray.init("local", include_dashboard=False, object_store_memory=200 * 1024**2, **quiet)
        return
    try:
        ray.init(address=resources.address, **quiet)
    except (ConnectionError, ValueError) as error:
        raise BadInput(f"resources.address: no Ray cluster answers at {resources.address!r}") from error


def require(resources: Resources, bundles: Sequence[ResourceBundle], field: str) -> None:
    """Make sure that the cluster can hold all of `bundles` at once, or raise BadInput naming `field`.

    A cluster started here is as big as this machine. Another may scale up: its autoscaler is asked to, and has
    `resources.wait_s` seconds.
    """
    ends = time.monotonic() + (resources.wait_s if resources.address else 0)
    has_requested = False
    while True:
        nodes = _alive()
        have, unplaced = _sum(nodes), _place(nodes, bundles)
        if not unplaced:
            return
        if time.monotonic() >= ends:
            need = _sum(bundles)
            hint = "; set resources.wait_s if this cluster scales up" if resources.address else ""
            raise BadInput(
                f"{field} asks for {len(bundles)} x {_words(bundles[0])} = {_words(need)}, "
                f"and the cluster has {_words({name: have.get(name, 0) for name in need})}{hint}"
            )
        if not has_requested:
            from ray.autoscaler.sdk import request_resources

            request_resources(bundles=[dict(bundle) for bundle in bundles])
            has_requested = True
        say(f"waiting for the cluster: {len(unplaced)} of {len(bundles)} x {_words(bundles[0])} pending")
        time.sleep(min(5.0, max(0.1, ends - time.monotonic())))


def room_for(bundles: Sequence[ResourceBundle]) -> int:
    """How many times the cluster can hold all of `bundles` at once."""
    nodes, count = _alive(), 0
    while not _place(nodes, bundles):
        count += 1
    return count


def worker_bundle(resources: Resources) -> dict[str, float]:
    """What one worker or actor of this run holds."""
    gpus = {"GPU": resources.gpus_per_worker} if resources.gpus_per_worker else {}
    return {"CPU": resources.cpus_per_worker, **gpus}


def _alive() -> list[dict[str, float]]:
    """What each living node holds in all."""
    return [dict(node["Resources"]) for node in ray.nodes() if node["Alive"]]


def _place(nodes: list[dict[str, float]], bundles: Sequence[ResourceBundle]) -> list[ResourceBundle]:
    """The bundles that find no room; takes from the nodes what the others hold."""
    unplaced = []
    for bundle in bundles:
        room = next((n for n in nodes if all(n.get(name, 0) >= much for name, much in bundle.items())), {})
        if not room:
            unplaced.append(bundle)
        for name, much in bundle.items() if room else ():
            room[name] -= much
    return unplaced


def _sum(bundles: Sequence[ResourceBundle]) -> dict[str, float]:
    names = {name for bundle in bundles for name in bundle}
    return {name: sum(bundle.get(name, 0) for bundle in bundles) for name in sorted(names)}


def _words(bundle: ResourceBundle) -> str:
    return " and ".join(f"{much:g} {name}" for name, much in bundle.items())
