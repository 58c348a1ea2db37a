"""Two ranks, each with its own half of the batch, do what one process does on the whole."""

from __future__ import annotations

import functools
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from methods.base import Averaged
from orchestrator.engine import TorchEngine
from orchestrator.loop import Place
from tests.training import pair, parity

ONE = Place(0, 1, torch.device("cpu"))
TRAINED = [(case, stage) for case in parity.CASES for stage in parity.STAGES if parity.is_possible(case, stage)]


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The results of one pair of processes that trained every case at every stage."""
    folder = tmp_path_factory.mktemp("parity")
    pair.run("tests.training.parity", folder)
    return folder


@functools.cache
def alone(case: str) -> tuple[list[dict[str, float]], dict[str, Tensor]]:
    """What plain torch does in one process."""
    return parity.run(case, parity.settings(0), ONE, TorchEngine)


@functools.cache
def start(case: str) -> dict[str, Tensor]:
    """The weights before training."""
    return parity.start(case)


@pytest.mark.parametrize(
    ("case", "stage", "accumulation"),
    [*((case, stage, 1) for case, stage in TRAINED), *(("lcm", s, 2) for s in range(4))],
)
def test_two_ranks_follow_one_process(two_ranks: Path, case: str, accumulation: int, stage: int) -> None:
    log = json.loads((two_ranks / f"{case}-{stage}-{accumulation}.json").read_text())
    weights = load_file(two_ranks / f"{case}-{stage}-{accumulation}.safetensors")
    expected_log, expected = alone(case)
    # The same float32 sums in another order: a few units in the last place.
    for step, (row, wanted) in enumerate(zip(log, expected_log, strict=True)):
        for name, value in wanted.items():
            rel = 1e-5 if name.startswith("loss/") else 1e-3
            # An adversarial loss is a sum of logits that nearly cancel, hence the absolute part.
            assert row[name] == pytest.approx(value, rel=rel, abs=1e-5), f"{name} at step {step}"
    assert weights.keys() == expected.keys()
    # Adam moves a weight whose gradient is nearly zero by a whole step one way or the other, so single weights
    # may differ; all together they must not, measured against how far training moved them.
    for name in parity.networks_of(expected):
        apart = parity.distance(weights, expected, name)
        assert apart < 5e-3 * parity.distance(expected, start(case), name), name


@pytest.mark.parametrize("case", parity.CASES)
def test_training_moved_the_weights_and_averages_lag_behind(case: str) -> None:
    weights, nets = alone(case)[1], parity.CASES[case].nets
    for name in parity.networks_of(weights):
        moved = parity.distance(weights, start(case), name)
        if isinstance(net := nets[name], Averaged):
            assert 0 < moved < 3 * (1 - net.decay) * parity.STEPS * parity.distance(weights, start(case), net.of)
        else:
            assert moved > 0.05


@pytest.mark.parametrize("case", parity.SEVERAL)
def test_an_update_touches_its_own_network_alone_in_plain_torch(case: str) -> None:
    assert parity.routes(case, parity.settings(0), ONE, TorchEngine) == own(case)


@pytest.mark.parametrize(("case", "stage"), [trained for trained in TRAINED if trained[0] in parity.SEVERAL])
def test_an_update_touches_its_own_network_alone_at_every_zero_stage(two_ranks: Path, case: str, stage: int) -> None:
    assert json.loads((two_ranks / f"{case}-{stage}-routes.json").read_text()) == own(case)


def own(case: str) -> dict[str, list[str]]:
    return {update.net: [update.net] for update in parity.CASES[case].updates}
