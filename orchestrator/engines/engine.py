"""One network with its optimizer: DeepSpeed's engine in a training worker, plain torch in a single process.

Losses call `engine.module`, never the engine: a loss may run a network several times, or differentiate
through it, between two steps, which DeepSpeedEngine.forward does not allow.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor, nn

from fewstep.methods.base import Critic, Trained
from fewstep.orchestrator.engines.partition import Partition
from fewstep.orchestrator.recipe.training import Training

FUSED = ("cpu", "cuda")  # where AdamW is one pass over memory


class Engine(Protocol):
    """A network that is trained."""

    module: nn.Module
    partition: Partition  # of what is trained

    def backward(self, loss: Tensor) -> None:
        """Add the gradients of one micro-batch's loss."""
        ...

    def step(self, learning_rate: float) -> None:
        """End a micro-batch; at the last of an accumulation, clip and apply the gradients."""
        ...

    def grad_norm(self) -> float:
        """Norm of the last applied gradient, before clipping; 0 where this process has applied none."""
        ...

    def save(self, folder: Path) -> None:
        """Write weights and optimizer state; every rank calls it."""
        ...

    def load(self, folder: Path, *, is_universal: bool = False) -> None:
        """Read back what `save` wrote, or what DeepSpeed made of it for any number of ranks."""
        ...


@dataclass(frozen=True)
class EngineSpec:
    """How a network is optimized, from the recipe and from the method."""

    training: Training
    betas: tuple[float, float]
    micro_batch_size: int  # of this process

    @classmethod
    def of(cls, training: Training, net: Trained | Critic, world_size: int) -> EngineSpec:
        """The specification of one network of a round.

        A critic is light, and its loss may differentiate its own gradient, which ZeRO-3 cannot: it stays at ZeRO-2.
        """
        if isinstance(net, Critic) and training.zero_stage == 3:
            training = training.model_copy(update={"zero_stage": 2})
        return cls(training, net.betas, training.batch_size // training.accumulation // world_size)

    def optimizer(self, module: nn.Module) -> torch.optim.AdamW:
        """AdamW over what is trained, in one pass over its memory where torch has one."""
        weights = trained_weights(module)
        return torch.optim.AdamW(
            weights,
            lr=self.training.learning_rate,
            betas=self.betas,
            weight_decay=self.training.weight_decay,
            fused=weights[0].device.type in FUSED,
        )


def trained_weights(module: nn.Module) -> list[nn.Parameter]:
    """Those of its weights that move."""
    return [weight for weight in module.parameters() if weight.requires_grad]
