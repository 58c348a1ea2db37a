"""What can be said before anything is spent: whether it fits, what it takes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fewstep.doors import lazy

if TYPE_CHECKING:
    from fewstep.orchestrator.planning.calibration import seconds_per_batch as seconds_per_batch
    from fewstep.orchestrator.planning.forecast import memory_of as memory_of
    from fewstep.orchestrator.planning.memory import MemoryEstimate as MemoryEstimate
    from fewstep.orchestrator.planning.store_access import check_nodes as check_nodes
    from fewstep.orchestrator.planning.store_access import check_space as check_space

__getattr__ = lazy(__file__)
