"""Many trials, then a fair look at the best."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fewstep.doors import lazy

if TYPE_CHECKING:
    from fewstep.orchestrator.search.driver import search as search

__getattr__ = lazy(__file__)
