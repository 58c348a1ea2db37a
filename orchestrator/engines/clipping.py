"""Clips the gradients of a whole optimizer at once, where DeepSpeed would go through them one by one."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn

KEPT_ELSEWHERE = {"offload_optimizer", "cpu_offload", "zenflow"}  # sections by which DeepSpeed clips in its own way


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
