"""Exponential moving averages of trained networks, in float32 whatever the network is trained in.

In bfloat16 a decay of 0.999 would never move a weight, so an average keeps float32 values of its own and
updates them from the optimizer's float32 weights. From ZeRO-1 on each rank averages the part that its optimizer steps.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn

from fewstep.orchestrator.engines.engine import Engine
from fewstep.orchestrator.engines.partition import Lay


class Average:
    """An average of one engine's network: `values`, cut as the engine's own weights are, hold the truth.

    A target is a module too, which losses call. Up to ZeRO-2 every rank has all of it, in the precision of the network,
    and the ranks gather it in that after each update.
    """

    def __init__(self, engine: Engine, decay: float, target: nn.Module | None = None) -> None:
        """Start from the engine's weights. `target` is a `frozen_copy` of its network, cut up at ZeRO-3."""
        self.decay, self._partition = decay, engine.partition
        self.values = [weight.float().clone() for weight in self._partition.parts()]
        moves = [weight.requires_grad for weight in engine.module.parameters()]
        self._lay: Lay | None = None
        if target is not None:
            self._lay = self._partition.onto(list(itertools.compress(target.parameters(), moves)))
        self._show()

    @property
    def is_cut(self) -> bool:
        """Whether each rank has only a part of the values."""
        return self._partition.is_cut

    @torch.no_grad()
    def update(self) -> None:
        """One step towards the network: value <- decay value + (1 - decay) weight."""
        for value, weight in zip(self.values, self._partition.parts(), strict=True):
            value.lerp_(weight.view_as(value), 1 - self.decay)
        self._show()

    def whole(self) -> Iterator[Tensor]:
        """The average of every trained weight in order, on the CPU; every rank calls it."""
        return self._partition.whole(self.values)

    def state(self) -> dict[str, Tensor]:
        """The values by number, for a checkpoint."""
        return {str(number): value for number, value in enumerate(self.values)}

    @torch.no_grad()
    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Go back to a checkpoint's values."""
        for number, value in enumerate(self.values):
            value.copy_(state[str(number)])
        self._show()

    def _show(self) -> None:
        if self._lay is not None:
            self._lay(self.values)


def frozen_copy(source: nn.Module) -> nn.Module:
    """Copy a network whose engine has not cut it up yet; what is not trained, a LoRA's base, is shared."""
    shared = {id(weight): weight for weight in source.parameters() if not weight.requires_grad}
    return copy.deepcopy(source, shared).requires_grad_(False).eval()
