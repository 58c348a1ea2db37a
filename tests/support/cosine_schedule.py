from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class CosineVP:
    """Variance preserving with alpha = cos(pi t / 2), log-SNR within [-20, 20] (arXiv:2202.00512, section 2)."""

    log_snr_max: float = 20.0

    def alpha(self, t: Tensor) -> Tensor:
        """cos(pi t / 2)."""
        return torch.cos(math.pi / 2 * t)

    def sigma(self, t: Tensor) -> Tensor:
        """sin(pi t / 2)."""
        return torch.sin(math.pi / 2 * t)

    def at(self, u: Tensor) -> Tensor:
        """Evenly in t, ends cut where the log-SNR reaches its limits."""
        low = math.atan(math.exp(-self.log_snr_max / 2)) * 2 / math.pi
        return low + u * (1 - 2 * low)

    def time_of(self, ratio: Tensor) -> Tensor:
        """The angle with that tangent."""
        return torch.atan(ratio) * 2 / math.pi

    def network_time(self, t: Tensor) -> Tensor:
        """t in [0, 1], as diffusers' networks take it: 0 to 1000."""
        return t * 1000
