"""Measures where the seconds of a training step go, without stopping the device to find out."""

from __future__ import annotations

import itertools
import time
from collections import defaultdict

import torch


class Stopwatch:
    """Times what happens between marks. On a GPU they are events, which are asked only when the times are read."""

    def __init__(self, device: torch.device) -> None:
        self._on_gpu = device.type == "cuda"
        self._marks: list[tuple[str, float | torch.cuda.Event]] = []

    def mark(self, phase: str = "") -> None:
        """End a phase, which began at the mark before; time before a mark without a name does not count."""
        self._marks.append((phase, self._now()))

    def read(self) -> dict[str, float]:
        """The seconds of each phase since the last reading; waits for the device to reach the last mark."""
        seconds: defaultdict[str, float] = defaultdict(float)
        for (_, start), (phase, end) in itertools.pairwise(self._marks):
            seconds[phase] += _between(start, end)
        self._marks.clear()
        seconds.pop("", None)
        return dict(seconds)

    def _now(self) -> float | torch.cuda.Event:
        if not self._on_gpu:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event


def _between(start: float | torch.cuda.Event, end: float | torch.cuda.Event) -> float:
    if isinstance(start, torch.cuda.Event) and isinstance(end, torch.cuda.Event):
        end.synchronize()
        return start.elapsed_time(end) / 1000
    assert isinstance(start, float) and isinstance(end, float)
    return end - start
