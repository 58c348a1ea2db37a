"""Bytes under keys, with one atomic act: put if absent."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fewstep.doors import lazy

if TYPE_CHECKING:
    from fewstep.orchestrator.storage.store import Store as Store
    from fewstep.orchestrator.storage.urls import open_store as open_store

__getattr__ = lazy(__file__)
