"""Writes DeepSpeed's configuration of a network from the recipe's training section."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from fewstep.orchestrator.engines.engine import EngineSpec
from fewstep.orchestrator.recipe.section import Json
from fewstep.orchestrator.recipe.training import Training

BUCKET = 500_000_000  # gradients that DeepSpeed adds up over the ranks together, at most


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
        # Losses are not scaled here, so that a gradient that is not finite is a fault, which the divergence monitor
        # ends training for, and no step to leave out. To look for one at each step is to wait for the device.
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
