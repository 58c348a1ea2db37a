"""Nothing of ours in a training step waits for the device, so that it is told what comes next before it is done.

What would wait on a GPU shows on torch's meta device: reading a value and masking by one are errors there, and a copy
to it says whether it was to be waited for. What DeepSpeed does by itself is not seen.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from fewstep.orchestrator.engines.rank import Rank
from fewstep.orchestrator.engines.torch import TorchEngine
from fewstep.orchestrator.training.loop import train
from tests.support import parity
from tests.support.row_groups import Groups, loader
from tests.support.source import ROOT

META = torch.device("meta")


class Waits(TorchDispatchMode):
    """Notes where our code copies from one device to another and waits."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(  # noqa: ANN204
        self, func: Callable[..., Tensor], types: object, args: tuple = (), kwargs: dict | None = None
    ):
        kwargs = kwargs or {}
        made = func(*args, **kwargs)
        if func in (torch.ops.aten._to_copy.default, torch.ops.aten.copy_.default):
            source = args[0] if func is torch.ops.aten._to_copy.default else args[1]
            goes_on = kwargs.get("non_blocking", False) or args[2:3] == (True,)
            if made.device != source.device and not goes_on:
                here = [frame for frame in traceback.extract_stack() if Path(frame.filename).parent.parent == ROOT]
                self.found.append(str(here[-1]))
        return made


@pytest.mark.parametrize("case", parity.CASES)
def test_no_step_of_training_waits_for_the_device(case: str) -> None:
    round, training, place = parity.CASES[case], parity.settings(0), Rank(0, 1, META)
    networks = parity.networks(case, training, place, TorchEngine)
    with Waits() as waits:
        batches = dict.fromkeys(round.sources, parity.batches(place))
        train(round, networks, batches, training, place, steps=parity.STEPS)
    assert not waits.found


def test_a_batch_is_sent_without_waiting() -> None:
    with Waits() as waits:
        sent_rows = loader(Groups(), device="meta").batch(0)
    assert not waits.found and sent_rows.x0.device == sent_rows.uncond["prompt"].device == META
