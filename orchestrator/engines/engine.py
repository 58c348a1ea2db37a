"""One network with its optimizer: DeepSpeed's engine in a training worker, plain torch in a single process.

Losses call `engine.module`, never the engine: a loss may run a network several times, or differentiate
through it, between two steps, which DeepSpeedEngine.forward does not allow.
"""

from __future__ import annotations

import logging
import math
import os
from argparse import Namespace
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, cast

import torch
from torch import Tensor, nn

from methods.base import Critic, Trained
from orchestrator.partition import Flat, Partition, Sharded, Whole
from orchestrator.recipe import Json, Training

FUSED = ("cpu", "cuda")  # where AdamW is one pass over memory
TAG = "engine"  # the folder that DeepSpeed keeps a checkpoint in, inside the one that it is told
KEPT_ELSEWHERE = {"offload_optimizer", "cpu_offload", "zenflow"}  # sections by which DeepSpeed clips in its own way
BUCKET = 500_000_000  # gradients that DeepSpeed adds up over the ranks together, at most


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
        """Norm of the last applied gradient."""
        return self._norm.item()

    def save(self, folder: Path) -> None:
        """One file."""
        folder.mkdir(parents=True)
        state = {"module": self.module.state_dict(), "optimizer": self._optimizer.state_dict()}
        torch.save(state, folder / "state.pt")

    def load(self, folder: Path, *, is_universal: bool = False) -> None:
        """From that file, whose hash the caller has checked. One process has no use for the other kind."""
        state = torch.load(folder / "state.pt", weights_only=True)
        self.module.load_state_dict(state["module"])
        self._optimizer.load_state_dict(state["optimizer"])


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
        """Of the last step."""
        ...

    def save_checkpoint(self, save_dir: str, tag: str, save_latest: bool, exclude_frozen_parameters: bool) -> None:
        """Every rank's files; without what is not trained."""
        ...

    def load_checkpoint(self, load_dir: str, tag: str, load_module_strict: bool) -> tuple[str | None, object]:
        """From every rank's files."""
        ...


class Clipping:
    """Clips what an optimizer is about to apply, all of it at once. DeepSpeed goes through one tensor after another."""

    def __init__(self, optimizer: torch.optim.Optimizer, max_grad_norm: float, *, is_cut: bool) -> None:
        """`is_cut` says that each rank applies a part of the gradients."""
        self._max_grad_norm, self._is_cut = max_grad_norm, is_cut
        self.norm = torch.zeros(())
        optimizer.register_step_pre_hook(self._clip)

    @classmethod
    def instead(cls, config: dict[str, Any], optimizer: torch.optim.Optimizer) -> Clipping | None:
        """In place of DeepSpeed's own, where it gives its optimizer all of this rank's gradients, unscaled."""
        zero = config["zero_optimization"]
        if zero["stage"] == 3 or KEPT_ELSEWHERE & zero.keys() or "data_types" in config:
            return None
        if not zero["stage"] and (config["bf16"]["enabled"] or config["fp16"]["enabled"]):
            return None
        max_grad_norm, config["gradient_clipping"] = config["gradient_clipping"] or math.inf, 0.0
        zero["compute_grad_norm"] = zero["stage"] == 0  # an option of stages 1 and 2
        return cls(optimizer, max_grad_norm, is_cut=zero["stage"] > 0)

    def _clip(self, optimizer: torch.optim.Optimizer, *_: object) -> None:
        weights = [weight for group in optimizer.param_groups for weight in group["params"] if weight.grad is not None]
        squared = nn.utils.get_total_norm([weight.grad for weight in weights]).square()
        if self._is_cut:
            torch.distributed.all_reduce(squared)
        self.norm = squared.sqrt()
        nn.utils.clip_grads_with_norm_(weights, self._max_grad_norm, self.norm)


class DeepSpeedEngine:
    """DeepSpeed's engine at any ZeRO stage. torch.distributed must be up (Ray Train has done that)."""

    def __init__(self, module: nn.Module, spec: EngineSpec) -> None:
        deepspeed = import_deepspeed()
        self._optimizer = spec.optimizer(module)  # DeepSpeed's own steps it
        config = configuration(spec, sum(weight.numel() for weight in trained_weights(module)))
        self._clipping = Clipping.instead(config, self._optimizer)
        engine, *_ = deepspeed.initialize(
            model=module, optimizer=self._optimizer, config=config, dist_init_required=False
        )
        self._engine = cast(DeepSpeedCore, engine)
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
        """From those files, with the same number of ranks. They are pickles: the caller has checked their hashes."""
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


def trained_weights(module: nn.Module) -> list[nn.Parameter]:
    """Those of its weights that move."""
    return [weight for weight in module.parameters() if weight.requires_grad]


def import_deepspeed():  # noqa: ANN201 - a module
    """DeepSpeed, quiet, on the CPU where there is no GPU."""
    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    import deepspeed

    deepspeed.utils.logging.logger.setLevel(logging.ERROR)
    # On CPUs DeepSpeed would compile a shared-memory reduce at first use, which takes a minute; gloo serves.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    return deepspeed


def configuration(spec: EngineSpec, trained: int = BUCKET) -> dict[str, Any]:
    """DeepSpeed's configuration of a network of which so many numbers are trained; the recipe's own entries win."""
    training = spec.training
    zero: Json = {
        "stage": training.zero_stage,
        # The buffer is as large as the bucket, however few gradients there are.
        "reduce_bucket_size": min(trained, BUCKET),
        # At stage 1 gradients are added up after the backward pass: a buffer that they go to first is one more copy.
        "contiguous_gradients": training.zero_stage > 1,
        **_offloads(training),
    }
    ours: Json = {
        "train_micro_batch_size_per_gpu": spec.micro_batch_size,
        "gradient_accumulation_steps": training.accumulation,
        "gradient_clipping": training.max_grad_norm,
        "zero_optimization": zero,
        # Losses are not scaled here, so that a gradient that is not finite is a fault, which the guard ends training
        # for, and no step to leave out. To look for one at each step is to wait for the device.
        "bf16": {"enabled": training.precision == "bfloat16", "check_grad_overflow": False},
        "fp16": {"enabled": training.precision == "float16"},
        # The optimizer is torch's AdamW: DeepSpeed's own CPU and fused ones are compiled at first use.
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "steps_per_print": 10**9,
    }
    return merged(ours, training.deepspeed)


def _offloads(training: Training) -> Json:
    """DeepSpeed's sections for what is kept in the host's memory."""
    cpu = {"device": "cpu", "pin_memory": torch.cuda.is_available()}
    sections = {"none": (), "optimizer": ("offload_optimizer",), "all": ("offload_optimizer", "offload_param")}
    return dict.fromkeys(sections[training.offload], cpu)


def merged(ours: Mapping[str, object], theirs: Mapping[str, object]) -> dict[str, Any]:
    """`theirs` over `ours`, section by section."""
    result: dict[str, object] = dict(ours)
    for key, value in theirs.items():
        inner = result.get(key)
        result[key] = merged(inner, value) if isinstance(inner, Mapping) and isinstance(value, Mapping) else value
    return result


def inference_engine(module: nn.Module, spec: EngineSpec) -> nn.Module:
    """A frozen network with its weights sharded over the ranks, each gathered only while its layer runs (ZeRO-3)."""
    engine, *_ = import_deepspeed().initialize(model=module, config=configuration(spec), dist_init_required=False)
    return cast(DeepSpeedCore, engine).module
