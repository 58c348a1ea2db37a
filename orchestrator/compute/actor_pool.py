"""Supervises a pool of Ray actors: a call is a shard; dead and late actors are replaced, bad shards quarantined."""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import ray
from ray.actor import ActorHandle
from ray.exceptions import RayError, RayTaskError

from fewstep.orchestrator.errors import BadInput

IN_FLIGHT = 2  # shards of one actor: one is sampled while the one before is written
START_S = 1800.0  # for a node to come up and a teacher to be loaded
LOOK_S = 5.0  # between looks at which nodes are to leave


@dataclass(eq=False)
class Worker:
    """An actor and the calls that it owes an answer to."""

    actor: ActorHandle
    start: ray.ObjectRef
    since: float  # when the oldest call became the oldest
    is_ready: bool = False
    node: str = ""  # known once it is ready
    is_leaving: bool = False  # its node is about to be taken away
    calls: dict[ray.ObjectRef, str] = field(default_factory=dict)  # shards, oldest first

    @property
    def pending(self) -> list[ray.ObjectRef]:
        """The calls that may answer next."""
        return list(self.calls) if self.is_ready else [self.start]


class ActorPool:
    """Makes shards with up to `size` actors, whatever happens to them.

    An actor answers `start()` with its node, and `make(shard)` with a commit, two at a time. One whose node is being
    drained finishes what it has and is replaced elsewhere. Actors that find no room wait for it, and the others
    work on; a node that joins is used, one that goes costs what was in flight on it. A shard counts a failure when
    it raises, or is alone on an actor that dies or answers nothing for `deadline_s`; shards that are lost together
    are retried alone, to learn which one is to blame. BadInput from an actor ends the whole run.
    """

    def __init__(self, spawn: Callable[[], ActorHandle], size: int, deadline_s: float, attempts: int) -> None:
        self.quarantined: dict[str, str] = {}  # shards that failed `attempts` times, and why
        self.failures: Counter[str] = Counter()
        self._spawn, self._size, self._deadline_s, self._attempts = spawn, size, deadline_s, attempts
        self._workers: list[Worker] = []
        self._waiting: deque[str] = deque()
        self._suspects: set[str] = set()  # run alone
        self._false_starts = 0
        self._looked = 0.0

    def run(self, shards: Sequence[str]) -> Iterator[Any]:
        """The commit of each shard, as they come. Ends without those in `quarantined`."""
        self._waiting.extend(shards)
        try:
            while self._waiting or any(worker.calls for worker in self._workers):
                self._retire()
                self._hire()
                self._assign()
                calls = [ref for worker in self._workers for ref in worker.pending]
                wait_s = min(self._left_s(worker) for worker in self._workers if worker.pending)
                ready, _ = ray.wait(calls, num_returns=1, timeout=max(0.0, min(wait_s, LOOK_S)))
                for ref in ready:
                    yield from self._settle(ref)
                self._give_up_late()
        finally:
            for worker in self._workers:
                ray.kill(worker.actor)

    def _retire(self) -> None:
        """Let go of actors whose nodes are about to be taken away, as soon as they owe nothing."""
        if time.monotonic() > self._looked + LOOK_S:
            self._looked, leaving = time.monotonic(), draining_nodes()
            for worker in self._workers:
                worker.is_leaving = worker.node in leaving
        for worker in [worker for worker in self._workers if worker.is_leaving and not worker.calls]:
            self._workers.remove(worker)
            ray.kill(worker.actor)

    def _hire(self) -> None:
        unfinished = len(self._waiting) + sum(len(worker.calls) for worker in self._workers)
        while sum(not worker.is_leaving for worker in self._workers) < min(self._size, unfinished):
            actor = self._spawn()
            self._workers.append(Worker(actor, actor.start.remote(), time.monotonic()))

    def _assign(self) -> None:
        """Give every idle actor a shard, then a second one while shards outnumber the actors without any."""
        idle = sum(not worker.calls and not worker.is_leaving for worker in self._workers)
        for depth in range(1, IN_FLIGHT + 1):
            for worker in self._workers:
                if len(self._waiting) <= (0 if depth == 1 else idle):
                    break
                if self._has_room(worker, depth):
                    shard = self._waiting.popleft()
                    if not worker.calls:
                        idle -= 1
                        worker.since = time.monotonic()
                    worker.calls[worker.actor.make.remote(shard)] = shard

    def _has_room(self, worker: Worker, depth: int) -> bool:
        together = {self._waiting[0], *worker.calls.values()}
        is_alone = not worker.calls or not (together & self._suspects)
        return worker.is_ready and not worker.is_leaving and len(worker.calls) < depth and is_alone

    def _settle(self, ref: ray.ObjectRef) -> Iterator[Any]:
        """Take an answer: a commit, a start, or a failure."""
        owners = [worker for worker in self._workers if ref in worker.pending]
        if not owners:  # its actor was lost to another call a moment ago
            return
        (worker,) = owners
        try:
            answer = ray.get(ref)
        except RayTaskError as error:
            if isinstance(error.cause, BadInput):
                raise error.cause from None
            self._fail(worker, [ref], f"{type(error.cause).__name__}: {error.cause}")
        except RayError as error:
            blamed = [] if worker.is_leaving else worker.pending  # no shard's fault if its node was taken away
            self._fail(worker, blamed, f"its actor died ({' '.join(str(error).split())[:200]})")
        else:
            worker.since = time.monotonic()
            if worker.is_ready:
                self._suspects.discard(worker.calls.pop(ref))
                yield answer
            else:
                worker.node = answer
            worker.is_ready, self._false_starts = True, 0

    def _left_s(self, worker: Worker) -> float:
        """Until the worker's oldest call is late."""
        return worker.since + (self._deadline_s if worker.is_ready else START_S) - time.monotonic()

    def _give_up_late(self) -> None:
        for worker in [worker for worker in self._workers if worker.pending and self._left_s(worker) < 0]:
            limit = f"trajectories.deadline_s={self._deadline_s:g}" if worker.is_ready else f"{START_S:g} s"
            self._fail(worker, worker.pending, f"not done after {limit}")

    def _fail(self, worker: Worker, blamed: list[ray.ObjectRef], why: str) -> None:
        """Replace the actor and hand its shards back; count a failure where it is clear whose it is."""
        self._workers.remove(worker)
        ray.kill(worker.actor)
        if not worker.is_ready and not any(other.is_ready for other in self._workers):
            self._false_starts += 1
            if self._false_starts >= self._attempts:
                raise RuntimeError(f"no sampling actor starts; the last one: {why}")
        guilty = [worker.calls[ref] for ref in blamed if ref in worker.calls]
        if len(guilty) > 1:
            self._suspects.update(guilty)
            guilty = []
        for shard in worker.calls.values():
            if shard in guilty:
                self.failures[shard] += 1
                self._suspects.add(shard)
            if self.failures[shard] >= self._attempts:
                self.quarantined[shard] = why
            else:
                self._waiting.appendleft(shard)


def draining_nodes() -> set[str]:
    """Nodes that are about to leave. Ray Train asks the same way; there is no public question for it in 2.60."""
    from ray._private.state import state

    return set(state.get_draining_nodes())
