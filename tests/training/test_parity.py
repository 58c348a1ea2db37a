"""Two ranks, each with its own half of the batch, do what one process does on the whole."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from orchestrator.engine import TorchEngine
from orchestrator.loop import Place
from tests.training import parity

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The results of one pair of processes that trained at every stage."""
    folder = tmp_path_factory.mktemp("parity")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    ranks = [
        subprocess.Popen(
            [sys.executable, "-m", "tests.training.parity", str(rank), "2", str(port), str(folder)],
            cwd=ROOT,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(2)
    ]
    outputs = [rank.communicate(timeout=600)[0] for rank in ranks]
    assert not any(rank.returncode for rank in ranks), outputs[0][-3000:] + outputs[1][-3000:]
    return folder


@pytest.fixture(scope="module")
def alone() -> tuple[list[dict[str, float]], dict[str, torch.Tensor]]:
    """What plain torch does in one process."""
    return parity.run(parity.settings(0), Place(0, 1, torch.device("cpu")), TorchEngine)


@pytest.mark.parametrize("accumulation", [1, 2])
@pytest.mark.parametrize("stage", parity.STAGES)
def test_two_ranks_follow_one_process(two_ranks: Path, alone, stage: int, accumulation: int) -> None:
    log = json.loads((two_ranks / f"{stage}-{accumulation}.json").read_text())
    weights = load_file(two_ranks / f"{stage}-{accumulation}.safetensors")
    expected_log, expected = alone
    # The same float32 sums in another order: a few units in the last place.
    for step, (row, wanted) in enumerate(zip(log, expected_log, strict=True)):
        assert row["loss"] == pytest.approx(wanted["loss"], rel=1e-5), f"step {step}"
        assert row["grad_norm"] == pytest.approx(wanted["grad_norm"], rel=1e-3), f"step {step}"
    assert weights.keys() == expected.keys()
    # Adam moves a weight whose gradient is nearly zero by a whole step one way or the other, so single weights
    # may differ; all together they must not, measured against how far training moved them.
    start = parity.start()
    for name in ("student", "average"):
        apart = norm({key: weights[key] - value for key, value in expected.items() if key.startswith(name)})
        moved = norm({key: expected[f"{name}/{key}"] - value for key, value in start.items()})
        assert apart < 5e-3 * moved


def norm(tensors: dict[str, torch.Tensor]) -> float:
    return torch.cat([tensor.flatten() for tensor in tensors.values()]).norm().item()


def test_training_moved_the_weights_and_the_average_lags_behind(alone) -> None:
    weights, start = alone[1], parity.start()
    moved = norm({key: weights[f"student/{key}"] - value for key, value in start.items()})
    lag = norm({key: weights[f"average/{key}"] - value for key, value in start.items()})
    assert moved > 0.1
    assert 0 < lag < 0.1 * moved
