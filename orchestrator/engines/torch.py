"""Trains a network by plain torch in a single process, as the reference that DeepSpeed's engine is compared with."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from fewstep.orchestrator.engines.engine import EngineSpec, trained_weights
from fewstep.orchestrator.engines.partition import Whole


class TorchEngine:
    """The plain twin of DeepSpeed's engine, for one process."""

    def __init__(self, module: nn.Module, spec: EngineSpec) -> None:
        self.module, self._training = module, spec.training
        self._optimizer = spec.optimizer(module)
        self._weights = trained_weights(module)
        self.partition = Whole(self._weights)
        self._micro, self._norm = 0, torch.zeros(())

    def backward(self, loss: Tensor) -> None:
        """Gradients add up to the mean over the accumulation's micro-batches."""
        (loss / self._training.accumulation).backward()

    def step(self, learning_rate: float) -> None:
        """Clip and apply at the end of an accumulation."""
        self._micro += 1
        if self._micro % self._training.accumulation:
            return
        for group in self._optimizer.param_groups:
            group["lr"] = learning_rate
        self._norm = nn.utils.clip_grad_norm_(self._weights, self._training.max_grad_norm)
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)

    def grad_norm(self) -> float:
        """Norm of the last applied gradient, before clipping."""
        return self._norm.item()

    def save(self, folder: Path) -> None:
        """Write the state to one file in a new folder."""
        folder.mkdir(parents=True)
        state = {"module": self.module.state_dict(), "optimizer": self._optimizer.state_dict()}
        torch.save(state, folder / "state.pt")

    def load(self, folder: Path, *, is_universal: bool = False) -> None:
        """Read that file, whose hash the caller has checked. One process has no use for universal checkpoints."""
        state = torch.load(folder / "state.pt", weights_only=True)
        self.module.load_state_dict(state["module"])
        self._optimizer.load_state_dict(state["optimizer"])
