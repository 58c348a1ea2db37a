from __future__ import annotations

import torch
from torch import nn

from methods.base import Trained
from orchestrator.averages import Average
from orchestrator.engine import EngineSpec, TorchEngine
from tests.training import parity


class HalfPrecision(TorchEngine):
    """Weights in bfloat16 under float32 master weights, as an optimizer in mixed precision holds them."""

    def __init__(self, module: nn.Module, spec: EngineSpec) -> None:
        super().__init__(module, spec)
        self.masters = {weight: weight.detach().double() for weight in module.parameters()}
        module.to(torch.bfloat16)

    def master(self, weight: nn.Parameter) -> torch.Tensor:
        return self.masters[weight].float()


def test_an_average_in_bfloat16_follows_one_in_float64() -> None:
    torch.manual_seed(0)
    engine = HalfPrecision(nn.Linear(8, 8), EngineSpec.of(parity.settings(0), Trained(), 1))
    average = Average(engine.module, decay=0.999)
    average.attach(engine, partitioned=False)
    start = {weight: value.clone() for weight, value in engine.masters.items()}
    exact = {weight: value.clone() for weight, value in engine.masters.items()}
    for _ in range(1000):
        for weight, master in engine.masters.items():
            master += 1e-3
            exact[weight] = 0.999 * exact[weight] + 0.001 * master
        average.update()
    for value, weight in zip(average.values, engine.masters, strict=True):
        moved = exact[weight] - start[weight]
        torch.testing.assert_close(value.double() - start[weight], moved, rtol=0.01, atol=0)
    for kept, value in zip(average.module.parameters(), average.values, strict=True):
        assert kept.dtype == torch.bfloat16
        torch.testing.assert_close(kept.float(), value, rtol=1e-2, atol=1e-3)


def test_an_average_comes_back_from_its_state() -> None:
    torch.manual_seed(0)
    engine = TorchEngine(nn.Linear(4, 4), EngineSpec.of(parity.settings(0), Trained(), 1))
    first, second = Average(engine.module, 0.9), Average(engine.module, 0.9)
    for average in (first, second):
        average.attach(engine, partitioned=False)
    with torch.no_grad():
        engine.module.weight.add_(1)
    first.update()
    second.restore({name: value.clone() for name, value in first.state().items()})
    for a, b in zip(first.module.parameters(), second.module.parameters(), strict=True):
        assert torch.equal(a, b)
