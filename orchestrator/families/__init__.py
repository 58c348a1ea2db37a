"""One file per kind of pipeline: its network, and how that is called."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fewstep.doors import lazy

if TYPE_CHECKING:
    from fewstep.orchestrator.families.custom import OwnModel as OwnModel
    from fewstep.orchestrator.families.family import Family as Family
    from fewstep.orchestrator.families.network import PipelineNetwork as PipelineNetwork
    from fewstep.orchestrator.families.usage import USAGES as USAGES

__getattr__ = lazy(__file__)
