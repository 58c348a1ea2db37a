"""The stages of one run in their order, and several runs side by side."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fewstep.doors import lazy

if TYPE_CHECKING:
    from fewstep.orchestrator.workflow.comparison import compare as compare
    from fewstep.orchestrator.workflow.stages import evaluate as evaluate
    from fewstep.orchestrator.workflow.stages import export as export
    from fewstep.orchestrator.workflow.stages import run as run
    from fewstep.orchestrator.workflow.stages import train as train

__getattr__ = lazy(__file__)
