"""Says which of the processes that train together this one is, and lets them agree on a value."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeVar

import torch

Value = TypeVar("Value")


@dataclass
class Rank:
    """Where this process stands among the ranks."""

    index: int  # 0 is the one that writes
    world_size: int
    device: torch.device

    def rows(self, batch_size: int) -> range:
        """This rank's rows of the global batch."""
        each = batch_size // self.world_size
        return range(self.index * each, (self.index + 1) * each)

    def broadcast(self, value: Value) -> Value:
        """Hand on the value of rank 0; every rank calls it."""
        box = [value]
        torch.distributed.broadcast_object_list(box)
        return box[0]

    def all_sum(self, value: int) -> int:
        """Sum up the values of all ranks; every rank calls it."""
        values = [0] * self.world_size
        torch.distributed.all_gather_object(values, value)
        return sum(values)
