"""What people see of a run: lines, bars, numbers, figures, trackers."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fewstep.doors import lazy

if TYPE_CHECKING:
    from fewstep.orchestrator.observability.console import progress as progress
    from fewstep.orchestrator.observability.console import say as say
    from fewstep.orchestrator.observability.metrics import REGISTRY as REGISTRY
    from fewstep.orchestrator.observability.metrics import Recorder as Recorder
    from fewstep.orchestrator.observability.trackers import Trackers as Trackers

__getattr__ = lazy(__file__)
