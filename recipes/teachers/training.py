"""Train a small teacher on a processor: resumable, averaged, every step's randomness a function of its number."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor, nn

Net = TypeVar("Net", bound=nn.Module)


def warm_and_cosine(step: int, cycles: Sequence[int]) -> float:
    """A factor of the learning rate: each cycle warms up, stays for a third, and falls along a cosine.

    To train a finished network further is to add a cycle.
    """
    for length in cycles:
        if step < length:
            fall = max(0.0, step / length - 0.3) / 0.7
            return min(1.0, (step + 1) / 100, (1 + math.cos(math.pi * fall)) / 2 + 0.005)
        step -= length
    raise ValueError("step is beyond the last cycle")


def fit(
    name: str,
    net: Net,
    loss: Callable[[int, torch.Generator], Tensor],
    *,
    cycles: Sequence[int],
    lr: float,
    work: Path,
) -> Net:
    """Train to the end, from the last checkpoint if there is one; return the averaged network."""
    average = copy.deepcopy(net).requires_grad_(False)
    optimizer = torch.optim.AdamW(net.parameters(), lr=lr, betas=(0.9, 0.99), weight_decay=0.01, fused=True)
    file, done = work / f"{name}.pt", 0
    if file.exists():
        state = torch.load(file, weights_only=True)
        done = state["done"]
        for target, key in ((net, "net"), (average, "average"), (optimizer, "optimizer")):
            target.load_state_dict(state[key])
    started, first, total, steps = time.time(), done, 0.0, sum(cycles)
    for step in range(done, steps):
        optimizer.param_groups[0]["lr"] = lr * warm_and_cosine(step, cycles)
        value = loss(step, torch.Generator().manual_seed(1_000_003 * step + 17))
        optimizer.zero_grad(set_to_none=True)
        value.backward()
        nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()
        decay = min(0.9995, (step + 1) / (step + 20))
        with torch.no_grad():
            torch._foreach_lerp_(list(average.parameters()), list(net.parameters()), 1 - decay)
        total += value.item()
        if (step + 1) % 100 == 0:
            rate_s = (time.time() - started) / (step + 1 - first)
            print(f"{name} {step + 1}/{steps} loss {total / 100:.4f} {rate_s:.3f} s/step", flush=True)
            total = 0.0
        if (step + 1) % 250 == 0 or step + 1 == steps:
            state = {
                "net": net.state_dict(),
                "average": average.state_dict(),
                "optimizer": optimizer.state_dict(),
                "done": step + 1,
            }
            torch.save(state, file.with_suffix(".new"))
            file.with_suffix(".new").replace(file)
    return average.eval()
