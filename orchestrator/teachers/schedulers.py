"""Finds schedulers by name: diffusers' own, and those of ours whose code travels in an exported folder."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from diffusers import SchedulerMixin

OURS = {"EvenFlowScheduler": "even_flow", "OvershootingScheduler": "overshooting"}  # class -> module of pipelines/


def scheduler_class(name: str) -> type[SchedulerMixin]:
    """The class of a scheduler; of ours, that in this package, whatever code a folder brings."""
    module = f"fewstep.orchestrator.pipelines.{OURS[name]}" if name in OURS else "diffusers"
    return getattr(importlib.import_module(module), name)
