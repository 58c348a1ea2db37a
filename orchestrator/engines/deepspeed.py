"""Trains a network with DeepSpeed, its state cut up over the ranks as the ZeRO stage says."""

from __future__ import annotations

import logging
import os
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol, cast

import torch
from torch import Tensor, nn

from fewstep.orchestrator.engines.clipping import Clipping
from fewstep.orchestrator.engines.deepspeed_config import configuration
from fewstep.orchestrator.engines.engine import EngineSpec, trained_weights
from fewstep.orchestrator.engines.partition import Flat, Partition, Sharded, Whole

TAG = "engine"  # the folder that DeepSpeed writes a checkpoint to, inside the one of ours


class ZeroOptimizer(Protocol):
    """The part of DeepSpeed's optimizers that is used here."""

    param_groups: list[dict[str, Any]]

    def clear_backward_seen_flag(self) -> None:
        """Note that a new micro-batch begins."""
        ...


class DeepSpeedCore(Protocol):
    """The part of deepspeed.DeepSpeedEngine that is used here; its own annotations say less than it does."""

    module: nn.Module
    optimizer: ZeroOptimizer
    _config: Namespace

    def backward(self, loss: Tensor) -> None:
        """Gradients of one micro-batch."""
        ...

    def step(self) -> None:
        """End of one micro-batch."""
        ...

    def get_global_grad_norm(self) -> float:
        """Norm of the last step's gradient."""
        ...

    def save_checkpoint(self, save_dir: str, tag: str, save_latest: bool, exclude_frozen_parameters: bool) -> None:
        """Write every rank's files, without what is not trained."""
        ...

    def load_checkpoint(self, load_dir: str, tag: str, load_module_strict: bool) -> tuple[str | None, object]:
        """Read every rank's files."""
        ...


class DeepSpeedEngine:
    """DeepSpeed's engine at any ZeRO stage. torch.distributed must be up (Ray Train has done that)."""

    def __init__(self, module: nn.Module, spec: EngineSpec) -> None:
        self._optimizer = spec.optimizer(module)  # DeepSpeed's own steps it
        config = configuration(spec, sum(weight.numel() for weight in trained_weights(module)))
        self._clipping = Clipping.instead(config, self._optimizer)
        self._engine = _initialize(module, config, self._optimizer)
        self.module = self._engine.module
        self._stage = spec.training.zero_stage
        self.partition = _partition(trained_weights(self.module), self._engine, self._stage)
        self._trains_all = all(weight.requires_grad for weight in module.parameters())  # or its base is the teacher's

    def backward(self, loss: Tensor) -> None:
        """DeepSpeed divides by the accumulation steps and averages over ranks."""
        # Its forward, which losses never call, is where ZeRO-3 counts micro-batches: without this call each
        # micro-batch of an accumulation silently replaces the gradients of the one before (0.19.8).
        if self._stage:
            self._engine.optimizer.clear_backward_seen_flag()
        self._engine.backward(loss)

    def step(self, learning_rate: float) -> None:
        """DeepSpeed counts the micro-batches."""
        for group in self._engine.optimizer.param_groups:
            group["lr"] = learning_rate
        self._engine.step()

    def grad_norm(self) -> float:
        """Norm over all ranks and shards."""
        return float(self._clipping.norm if self._clipping else self._engine.get_global_grad_norm() or 0.0)

    def save(self, folder: Path) -> None:
        """DeepSpeed's own files, one optimizer state per rank."""
        self._engine.save_checkpoint(str(folder), tag=TAG, save_latest=False, exclude_frozen_parameters=True)

    def load(self, folder: Path, *, is_universal: bool = False) -> None:
        """Read those files, with the same number of ranks. They are pickles: the caller has checked their hashes."""
        self._engine._config.load_universal_checkpoint = is_universal
        loaded, _ = self._engine.load_checkpoint(str(folder), tag=TAG, load_module_strict=self._trains_all)
        assert loaded is not None
        if not is_universal:
            return
        # DeepSpeed leaves AdamW's count of steps on the CPU, and shares one between all parts of ZeRO-3's weights.
        for weight, state in self._optimizer.state.items():
            state["step"] = state["step"].to(weight.device, copy=True)


def _partition(weights: Sequence[nn.Parameter], engine: DeepSpeedCore, stage: int) -> Partition:
    from deepspeed.utils import safe_get_local_fp32_param

    if stage == 3:
        return Sharded(weights, safe_get_local_fp32_param)
    return Flat(weights, lambda: engine.optimizer.param_groups[0]["params"][0]) if stage else Whole(weights)


def import_deepspeed():  # noqa: ANN201 - a module
    """DeepSpeed, quiet, on the CPU where there is no GPU."""
    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    import deepspeed

    deepspeed.utils.logging.logger.setLevel(logging.ERROR)
    # On CPUs DeepSpeed would compile a shared-memory reduce at first use, which takes a minute; gloo serves.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    return deepspeed


def inference_engine(module: nn.Module, spec: EngineSpec) -> nn.Module:
    """A frozen network with its weights sharded over the ranks, each gathered only while its layer runs (ZeRO-3)."""
    return _initialize(module, configuration(spec)).module


def _initialize(
    module: nn.Module, config: dict[str, Any], optimizer: torch.optim.Optimizer | None = None
) -> DeepSpeedCore:
    engine, *_ = import_deepspeed().initialize(
        model=module, optimizer=optimizer, config=config, dist_init_required=False
    )
    return cast(DeepSpeedCore, engine)
