"""Exponential moving averages of trained networks, in float32 whatever the network is trained in.

In bfloat16 a decay of 0.999 would never move a weight, so an average keeps float32 values of its own and
updates them from the optimizer's float32 weights. At ZeRO-3 each rank averages its own shards.
"""

from __future__ import annotations

import copy
import itertools

import torch
from torch import Tensor, nn

from orchestrator.engine import Engine


class Average:
    """An average of one engine's network: `module` is callable in losses, `values` hold the truth."""

    def __init__(self, source: nn.Module, decay: float) -> None:
        """Copy the network; call before its engine partitions it. What is not trained is shared, not copied."""
        self.decay = decay
        self._moves = [weight.requires_grad for weight in source.parameters()]
        shared = {id(weight): weight for weight in source.parameters() if not weight.requires_grad}
        self.module = copy.deepcopy(source, shared).requires_grad_(False).eval()
        self.values: list[Tensor] = []
        self.is_sharded = False  # over the ranks, as at ZeRO-3

    def attach(self, engine: Engine, *, partitioned: bool) -> None:
        """Start from the engine's weights; `partitioned` says that both networks are sharded (ZeRO-3)."""
        self._engine, self.is_sharded = engine, partitioned
        self.values = [engine.master(weight).float().clone() for weight in self._sources()]
        for kept, source in zip(self._kept(), self._sources(), strict=True):
            kept.data = kept.data.to(source.dtype)  # what losses call computes as the network does

    @torch.no_grad()
    def update(self) -> None:
        """One step towards the network: value <- decay value + (1 - decay) weight."""
        for value, source, kept in zip(self.values, self._sources(), self._kept(), strict=True):
            value.lerp_(self._engine.master(source).view_as(value), 1 - self.decay)
            self._place(kept).copy_(value)

    def state(self) -> dict[str, Tensor]:
        """The values by number, for a checkpoint."""
        return {str(number): value for number, value in enumerate(self.values)}

    @torch.no_grad()
    def restore(self, state: dict[str, Tensor]) -> None:
        """Back to a checkpoint's values."""
        for number, kept in enumerate(self._kept()):
            self.values[number].copy_(state[str(number)])
            self._place(kept).copy_(self.values[number])

    def named_weights(self) -> list[tuple[str, nn.Parameter]]:
        """The averaged weights, in the order of `values`; frozen ones (a LoRA's base) never move."""
        return list(itertools.compress(self.module.named_parameters(), self._moves))

    def _sources(self) -> list[nn.Parameter]:
        return list(itertools.compress(self._engine.module.parameters(), self._moves))

    def _place(self, weight: nn.Parameter) -> Tensor:
        return shard(weight) if self.is_sharded else weight.data

    def _kept(self) -> list[nn.Parameter]:
        return [weight for _, weight in self.named_weights()]


def shard(weight: nn.Parameter) -> Tensor:
    """This rank's part of a weight that DeepSpeed partitioned, shaped as the optimizer holds it."""
    return weight.ds_tensor.data  # pyright: ignore[reportAttributeAccessIssue] - set by DeepSpeed
