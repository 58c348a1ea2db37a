"""A command on a cluster: its bundle, its record, what became of it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fewstep.doors import lazy

if TYPE_CHECKING:
    from fewstep.orchestrator.submission.bundle import make_bundle as make_bundle
    from fewstep.orchestrator.submission.jobs import logs as logs
    from fewstep.orchestrator.submission.jobs import status as status
    from fewstep.orchestrator.submission.jobs import stop as stop
    from fewstep.orchestrator.submission.jobs import submit as submit

__getattr__ = lazy(__file__)
