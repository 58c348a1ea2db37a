"""A simulation, not a measurement, of the factory with up to 1,000 actors on nodes that fail, from measured constants.

    python -m tests.benchmarks.simulation [--shard-s 60] [--mtbf-h 8]

Its model: an actor samples one shard after another and has two in hand; whatever the driver does with a shard, settling
its commit and handing out the next, takes it `driver_s`, one shard at a time; an actor fails after an exponential
time, loses what it had in hand, and its successor starts `start_s` later. The constants of the driver come from the
real pool with actors that do nothing. The model is checked against the real pool with one and with two actors that
sleep instead of sampling.
"""

from __future__ import annotations

import argparse
import asyncio
import heapq
import random
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import ray
from ray.actor import ActorHandle

from fewstep.orchestrator.compute.actor_pool import IN_FLIGHT, ActorPool
from fewstep.orchestrator.compute.cluster import connect
from fewstep.orchestrator.recipe.resources import Resources
from fewstep.orchestrator.storage.local import LocalStore
from tests.benchmarks.ratio import Row, median_of, show
from tests.support.work import commit, drive, opened

ACTORS = (1, 10, 100, 1_000)
CHECKED_S = 0.5  # what a shard takes in the runs that the model is checked against
CHECKED_SHARDS = 40
START_S = 60.0  # of a new actor, with the teacher to load


@dataclass(frozen=True)
class Constants:
    """Seconds that things take."""

    shard_s: float  # an actor for a shard
    driver_s: float  # the driver for one
    start_s: float  # an actor before its first
    mtbf_s: float = float("inf")  # until an actor fails, on average


@dataclass
class Outcome:
    """What a data set took."""

    seconds: float = 0.0
    lost_s: float = 0.0  # of sampling that was done again
    driver_s: float = 0.0  # that the driver was at work


@dataclass
class Actor:
    """One that samples; another one takes its place with another life."""

    in_hand: int = 0
    since: float = 0.0  # when it began with the shard that it samples
    life: int = 0


def simulate(actors: int, shards: int, told: Constants, seed: int = 0) -> Outcome:
    """Go from event to event until every shard is committed."""
    chance, found, pool = random.Random(seed), Outcome(), [Actor() for _ in range(actors)]
    left, committed, free_at = shards, 0, 0.0
    events = [(told.start_s, "starts", number, 0) for number in range(actors)]
    if told.mtbf_s < float("inf"):
        events += [(told.start_s + chance.expovariate(1 / told.mtbf_s), "fails", n, 0) for n in range(actors)]
    heapq.heapify(events)

    def hand_out(now: float, number: int, room: int) -> None:
        nonlocal left
        actor = pool[number]
        for _ in range(min(room, left)):
            left -= 1
            actor.in_hand += 1
            if actor.in_hand == 1:
                actor.since = now
                heapq.heappush(events, (now + told.shard_s, "ends", number, actor.life))

    while committed < shards:
        now, what, number, life = heapq.heappop(events)
        actor = pool[number]
        if life != actor.life:
            continue
        if what in ("starts", "ends"):
            if what == "ends":
                actor.in_hand -= 1
                actor.since = now
                if actor.in_hand:
                    heapq.heappush(events, (now + told.shard_s, "ends", number, life))
            free_at = max(now, free_at) + told.driver_s
            found.driver_s += told.driver_s
            heapq.heappush(events, (free_at, "settled" if what == "ends" else "hired", number, life))
            committed += what == "ends"  # its commit is in the store, whatever becomes of the actor now
        elif what == "fails":
            found.lost_s += (now - actor.since) if actor.in_hand else 0.0
            left += actor.in_hand
            pool[number] = Actor(life=life + 1)
            again = now + told.start_s
            heapq.heappush(events, (again, "starts", number, life + 1))
            heapq.heappush(events, (again + chance.expovariate(1 / told.mtbf_s), "fails", number, life + 1))
        else:
            hand_out(now, number, IN_FLIGHT if what == "hired" else 1)
        found.seconds = max(now, found.seconds)
    return found


class Sleeper:
    """An actor that takes its time and makes nothing."""

    def __init__(self, shard_s: float) -> None:
        self._shard_s = shard_s

    async def start(self) -> str:
        """At once."""
        return ""

    async def make(self, shard: str) -> str:
        """After a while."""
        await asyncio.sleep(self._shard_s)
        return shard


def real(actors: int, shards: int, shard_s: float) -> float:
    """Seconds from the pool's first shard to its last."""

    def spawn() -> ActorHandle:
        return cast(ActorHandle, ray.remote(Sleeper).options(num_cpus=0, max_concurrency=1).remote(shard_s))

    ends = [time.perf_counter() for _ in ActorPool(spawn, actors, 600.0, 1).run([str(i) for i in range(shards)])]
    return ends[-1] - ends[0]


def driver_s(actors: int) -> float:
    """Of the real pool for a shard, with so many actors that take no time: all of them one process, to find room."""
    all_in_one = ray.remote(Sleeper).options(num_cpus=0, max_concurrency=IN_FLIGHT * actors).remote(0.0)
    shards = [str(i) for i in range(max(200, 3 * actors))]
    ends = [time.perf_counter() for _ in ActorPool(lambda: cast(ActorHandle, all_in_one), actors, 600.0, 1).run(shards)]
    return (ends[-1] - ends[0]) / (len(ends) - 1)


class Counted(LocalStore):
    """Counts what it is asked."""

    asked = 0

    def __getattribute__(self, name: str) -> object:
        found = super().__getattribute__(name)
        if callable(found) and not name.startswith("_"):
            Counted.asked += 1
        return found


def requests_per_shard() -> float:
    """What a store is asked to write and to commit a shard."""
    with tempfile.TemporaryDirectory() as folder:
        commit_log = opened(folder)
        drive(commit_log, [])
        counting = type(commit_log)(Counted(Path(folder)), commit_log.plan, commit_log.teacher)
        commit(counting, counting.plan.shards()[0].name)
    return Counted.asked


def main(shard_s: float, mtbf_h: float) -> Iterator[Row]:
    """Check the model, then simulate."""
    connect(Resources())
    driver = {actors: driver_s(actors) for actors in (2, *ACTORS)}
    for actors in (1, 2):
        took = real(actors, CHECKED_SHARDS, CHECKED_S)
        said = simulate(actors, CHECKED_SHARDS, Constants(CHECKED_S, driver[actors], 0.0)).seconds - CHECKED_S
        found = median_of([min(said, took) / max(said, took)])
        name = f"simulation, against {actors} real actor{'s' * (actors > 1)}"
        yield {"benchmark": name, **found, "simulated_s": round(said, 2), "real_s": round(took, 2)}
    ray.shutdown()
    asked = requests_per_shard()
    for actors in ACTORS:
        shards = 50 * actors
        found = simulate(actors, shards, Constants(shard_s, driver[actors], START_S, mtbf_h * 3600))
        yield {
            "benchmark": f"simulated factory, {actors} actors",
            "shards_per_s": round(shards / found.seconds, 3),
            "of_undisturbed": round(shards * shard_s / actors / found.seconds, 3),
            "done_again": round(found.lost_s / (shards * shard_s), 4),
            "driver_ms": round(1000 * driver[actors], 2),
            "driver_busy": round(found.driver_s / found.seconds, 4),
            "store_requests_per_s": round(asked * shards / found.seconds, 1),
            "shard_s": shard_s,
            "mtbf_h": mtbf_h,
        }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shard-s", type=float, default=60.0)
    parser.add_argument("--mtbf-h", type=float, default=8.0)
    args = parser.parse_args()
    show(main(args.shard_s, args.mtbf_h))
