from __future__ import annotations

import torch
from torch import nn

from fewstep.methods.base import Trained
from fewstep.orchestrator.engines.engine import EngineSpec
from fewstep.orchestrator.engines.moving_average import Average, frozen_copy
from fewstep.orchestrator.engines.torch import TorchEngine
from tests.support import parity


def test_an_average_comes_back_from_its_state() -> None:
    torch.manual_seed(0)
    engine = TorchEngine(nn.Linear(4, 4), EngineSpec.of(parity.settings(0), Trained(), 1))
    targets = [frozen_copy(engine.module) for _ in range(2)]
    first, second = (Average(engine, 0.9, target) for target in targets)
    with torch.no_grad():
        engine.module.weight.add_(1)
    first.update()
    second.restore({name: value.clone() for name, value in first.state().items()})
    for a, b in zip(*(target.parameters() for target in targets), strict=True):
        assert torch.equal(a, b)
    torch.testing.assert_close(next(targets[0].parameters()), engine.module.weight - 0.9)
