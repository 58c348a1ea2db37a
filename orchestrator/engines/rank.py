"""Rank, world size, broadcast."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeVar

import torch

Fact = TypeVar("Fact")


@dataclass
class Rank:
    """Where this process stands among the ranks."""

    rank: int
    world_size: int
    device: torch.device

    def rows(self, batch_size: int) -> range:
        """This rank's rows of the global batch."""
        each = batch_size // self.world_size
        return range(self.rank * each, (self.rank + 1) * each)

    def broadcast(self, value: Fact) -> Fact:
        """What rank 0 says; every rank calls it."""
        box = [value]
        torch.distributed.broadcast_object_list(box)
        return box[0]

    def all_sum(self, part: int) -> int:
        """The sum of what the ranks say; every rank calls it."""
        parts = [0] * self.world_size
        torch.distributed.all_gather_object(parts, part)
        return sum(parts)
