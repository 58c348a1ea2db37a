"""Two ranks, each with its own half of the batch, do what one process does on the whole."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import cast

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from fewstep.methods.base import Averaged
from fewstep.orchestrator.engines.rank import Rank
from fewstep.orchestrator.engines.torch import TorchEngine
from tests.support import pair, parity

ONE = Rank(0, 1, torch.device("cpu"))
TRAINED = [(case, stage) for case in parity.CASES for stage in parity.STAGES if parity.is_possible(case, stage)]


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The results of one pair of processes that trained every case at every stage."""
    folder = tmp_path_factory.mktemp("parity")
    pair.run("tests.support.parity", folder)
    return folder


@functools.cache
def alone(case: str, max_grad_norm: float = 1.0) -> tuple[list[dict[str, float]], dict[str, Tensor]]:
    """What plain torch does in one process."""
    return parity.run(case, parity.settings(0, max_grad_norm=max_grad_norm), ONE, TorchEngine)


@functools.cache
def start(case: str) -> dict[str, Tensor]:
    """The weights before training."""
    return parity.start(case)


@pytest.mark.parametrize(("case", "stage"), TRAINED)
def test_two_ranks_follow_one_process(two_ranks: Path, case: str, stage: int) -> None:
    # The same float32 sums in another order: a few units in the last place.
    agree(two_ranks / f"{case}-{stage}", case, alone(case), rel=1e-5)


@pytest.mark.parametrize(("name", "stage"), [(name, s) for name, (_, at, _) in parity.VARIANTS.items() for s in at])
def test_two_ranks_follow_one_process_however_they_are_told_to(two_ranks: Path, name: str, stage: int) -> None:
    case, _, told = parity.VARIANTS[name]
    norm = float(str(told.get("max_grad_norm", 1.0)))
    if told.get("precision") != "bfloat16":
        agree(two_ranks / f"{name}-{stage}", case, alone(case, norm), rel=1e-5)
        return
    # It has 8 bits of mantissa, which turn the steps of weights whose gradients are near zero; and DeepSpeed's float32
    # weights start as the rounded ones.
    rounded = {name: value.bfloat16().float() for name, value in start(case).items()}
    agree(two_ranks / f"{name}-{stage}", case, alone(case, norm), rel=3e-3, apart=0.5, rounded=rounded)


def agree(
    made: Path,
    case: str,
    wanted: tuple[list[dict[str, float]], dict[str, Tensor]],
    *,
    rel: float,
    apart: float = 5e-3,
    rounded: dict[str, Tensor] | None = None,
) -> None:
    """Losses and gradient norms of every step, and final weights, of a run of the pair and of one process.

    `rounded` are the weights that the pair started from, where they are not quite those of the process.
    """
    log, weights = json.loads(made.with_suffix(".json").read_text()), load_file(made.with_suffix(".safetensors"))
    expected_log, expected = wanted
    for step, (row, values) in enumerate(zip(log, expected_log, strict=True)):
        for name, value in values.items():
            bound = rel if name.startswith("loss/") else max(1e-3, 10 * rel)
            # An adversarial loss is a sum of logits that nearly cancel, hence the absolute part.
            assert row[name] == pytest.approx(value, rel=bound, abs=1e-5), f"{name} at step {step}"
    assert weights.keys() == expected.keys()
    # Adam moves a weight whose gradient is nearly zero by a whole step one way or the other, so single weights
    # may differ; all together they must not, measured against how far training moved them.
    for name in parity.networks_of(expected):
        away, moved = (parity.distance(other, expected, name) for other in (weights, start(case)))
        off = parity.distance(rounded, start(case), name) if rounded else 0.0
        assert away < apart * moved + off, name


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


def held(two_ranks: Path) -> list[dict[str, int]]:
    return [json.loads((two_ranks / f"held-{rank}.json").read_text()) for rank in range(2)]


def student_size() -> int:
    return sum(value.numel() for name, value in start("lcm").items() if name.startswith("student/"))


def test_a_rank_of_two_holds_half_of_a_teacher_in_parts_and_of_the_optimizer(two_ranks: Path) -> None:
    teacher, student = sum(w.numel() for w in cast(nn.Module, parity.teacher().net).parameters()), student_size()
    for rank in held(two_ranks):
        assert rank["teacher"] == pytest.approx(teacher / 2, rel=0.01)  # each weight's halves are alike, if padded
        assert rank["optimizer at ZeRO-0"] == 2 * student
        for stage in (1, 2, 3):
            assert rank[f"optimizer at ZeRO-{stage}"] == pytest.approx(student, rel=0.01)


@pytest.mark.parametrize("name", ["target", "average"])
def test_a_rank_of_two_holds_half_of_the_float32_of_an_average(two_ranks: Path, name: str) -> None:
    for rank in held(two_ranks):
        assert rank[f"{name} at ZeRO-0"] == student_size()
        for stage in (1, 2, 3):
            assert rank[f"{name} at ZeRO-{stage}"] == pytest.approx(student_size() / 2, rel=0.01)


@pytest.mark.parametrize("stage", [1, 2])
def test_an_average_over_bfloat16_follows_one_in_float64(two_ranks: Path, stage: int) -> None:
    for rank in range(2):
        found = json.loads((two_ranks / f"drift-{rank}.json").read_text())[str(stage)]
        assert found["off"] < 0.01 and found["differing"] == 0
