"""A data set's rows on the device, in an order that any number of ranks can go on with."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fewstep.doors import lazy

if TYPE_CHECKING:
    from fewstep.orchestrator.dataloader.loader import Loader as Loader
    from fewstep.orchestrator.dataloader.order import Order as Order

__getattr__ = lazy(__file__)
