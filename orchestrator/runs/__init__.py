"""The run directory, and its one live driver."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fewstep.doors import lazy

if TYPE_CHECKING:
    from fewstep.orchestrator.runs.run import Run as Run
    from fewstep.orchestrator.runs.run import reopen as reopen
    from fewstep.orchestrator.runs.run import round_folder as round_folder

__getattr__ = lazy(__file__)
