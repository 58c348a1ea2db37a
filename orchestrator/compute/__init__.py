"""Ray: connect, ask whether there is room, run one task, supervise a pool of actors."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fewstep.doors import lazy

if TYPE_CHECKING:
    from fewstep.orchestrator.compute.actor_pool import ActorPool as ActorPool
    from fewstep.orchestrator.compute.cluster import connect as connect
    from fewstep.orchestrator.compute.cluster import require as require
    from fewstep.orchestrator.compute.tasks import run_task as run_task

__getattr__ = lazy(__file__)
