"""The page of a run, the card of a student, its teacher's licence, the hub."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fewstep.doors import lazy

if TYPE_CHECKING:
    from fewstep.orchestrator.reports.hub import push as push
    from fewstep.orchestrator.reports.model_card import write_card as write_card
    from fewstep.orchestrator.reports.run_page import write_report as write_report

__getattr__ = lazy(__file__)
