from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import cast

import pytest
import ray
from ray.actor import ActorHandle

from fewstep.orchestrator.compute.actor_pool import ActorPool
from fewstep.orchestrator.errors import BadInput

pytestmark = pytest.mark.usefixtures("cluster")


class Maker:
    """Makes shards out of nothing, and leaves a line about each try. Shards named in `poison` do what it says."""

    def __init__(self, log: Path, poison: dict[int, str]) -> None:
        self._log, self._poison = log, poison
        self._sampling = threading.Lock()

    def start(self) -> None:
        if "start" in self._poison.values():
            raise OSError("no teacher here")

    def make(self, shard: int) -> int:
        with self._sampling, self._log.open("a") as log:
            log.write(f"{shard}\n")
            log.flush()
            match self._poison.get(shard):
                case "raises":
                    raise ValueError("not finite")
                case "exits":
                    os._exit(1)
                case "hangs":
                    time.sleep(1000)
                case "full":
                    raise BadInput("store: no space left")
        return shard


@pytest.fixture
def make_pool(tmp_path: Path) -> Callable[..., ActorPool]:
    def make(poison: dict[int, str], size: int = 2, deadline_s: float = 60.0, attempts: int = 2) -> ActorPool:
        def spawn() -> ActorHandle:
            actor = ray.remote(Maker).options(num_cpus=0, max_restarts=0, max_concurrency=2)
            return cast(ActorHandle, actor.remote(tmp_path / "log", poison))

        return ActorPool(spawn, size, deadline_s, attempts)

    return make


def made(pool: ActorPool, shards: range) -> list[int]:
    return sorted(cast(Iterator[int], pool.run(shards)))


def tries(log: Path) -> dict[int, int]:
    shards = [int(line) for line in log.read_text().split()]
    return {shard: shards.count(shard) for shard in set(shards)}


def test_every_shard_is_made_once(make_pool: Callable[..., ActorPool], tmp_path: Path) -> None:
    assert made(make_pool({}), range(9)) == list(range(9))
    assert tries(tmp_path / "log") == {shard: 1 for shard in range(9)}


def test_poison_shards_are_set_aside_and_the_rest_is_made(make_pool: Callable[..., ActorPool], tmp_path: Path) -> None:
    pool = make_pool({1: "raises", 3: "exits"})
    assert made(pool, range(6)) == [0, 2, 4, 5]
    assert pool.quarantined.keys() == {1, 3}
    assert pool.quarantined[1] == "ValueError: not finite" and "actor died" in pool.quarantined[3]
    # Two tries that count, and any beside another shard, which do not tell whose fault it was.
    assert pool.failures == {1: 2, 3: 2} and max(tries(tmp_path / "log").values()) <= 4


def test_shards_past_their_deadline_are_set_aside_and_those_behind_them_are_made(
    make_pool: Callable[..., ActorPool],
) -> None:
    pool = make_pool({0: "hangs", 1: "hangs"}, deadline_s=8.0, attempts=1)
    assert made(pool, range(4)) == [2, 3]
    assert pool.quarantined == dict.fromkeys((0, 1), "not done after trajectories.deadline_s=8")


def test_bad_input_from_an_actor_ends_the_run(make_pool: Callable[..., ActorPool]) -> None:
    with pytest.raises(BadInput, match="^store: no space left$"):
        made(make_pool({0: "full"}), range(4))


def test_actors_that_never_start_end_the_run(make_pool: Callable[..., ActorPool]) -> None:
    with pytest.raises(RuntimeError, match="no sampling actor starts; the last one: OSError: no teacher here"):
        made(make_pool({99: "start"}), range(4))
