"""One trained network under ZeRO: its engine, its partition, its averages, the rank it is on."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fewstep.doors import lazy

if TYPE_CHECKING:
    from fewstep.orchestrator.engines.engine import Engine as Engine
    from fewstep.orchestrator.engines.engine import EngineSpec as EngineSpec
    from fewstep.orchestrator.engines.moving_average import Average as Average
    from fewstep.orchestrator.engines.rank import Rank as Rank

__getattr__ = lazy(__file__)
