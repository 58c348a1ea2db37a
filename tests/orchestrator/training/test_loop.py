"""What a training step costs besides its arithmetic."""

from __future__ import annotations

from dataclasses import replace
from typing import cast

import pytest
import torch
from torch import nn

from fewstep.methods.batch import Rows
from fewstep.orchestrator.engines.engine import EngineSpec
from fewstep.orchestrator.engines.rank import Rank
from fewstep.orchestrator.engines.torch import TorchEngine
from fewstep.orchestrator.students.student import student_network, trained_of
from fewstep.orchestrator.training.loop import Progress, train
from fewstep.orchestrator.training.round_networks import build_networks
from tests.support import parity

META = torch.device("meta")


def abstract(rows: Rows) -> Rows:
    """Rows without values, but for their ids, which are the loader's."""
    kept, cond, uncond = (
        {name: value if name == "sample_id" else value.to(META) for name, value in part.items()}
        for part in (rows.columns, rows.cond, rows.uncond)
    )
    return Rows(kept, cond, uncond)


@pytest.mark.parametrize("case", parity.CASES)
def test_a_step_reads_nothing_from_the_device_and_waits_for_no_rank(case: str) -> None:
    """Tensors of the meta device have no value to read, and without a process group there is no rank to wait for."""
    round, training, place = parity.CASES[case], parity.settings(0), Rank(0, 2, META)
    of = parity.teacher()
    of = replace(of, net=cast(nn.Module, of.net).to(META))
    networks = build_networks(
        round,
        of,
        of,
        student_network(cast(nn.Module, of.net), trained_of(round, round.result)).to(META),
        lambda net: EngineSpec.of(training, net, place.world_size),
        lambda module, spec: TorchEngine(module.to(META), spec),
        lambda net: parity.frozen(net).to(META),
    )
    batches = parity.batches(place)
    streams = {name: lambda start: map(abstract, batches(start)) for name in round.sources}
    done: list[int] = []
    train(round, networks, streams, training, place, steps=3, after=lambda step, progress: done.append(step))
    assert done == [1, 2, 3]


def test_the_parts_of_a_step_are_all_of_it() -> None:
    place, training = Rank(0, 1, torch.device("cpu")), parity.settings(0)
    round, networks = parity.CASES["reflow"], parity.networks("reflow", training, place, TorchEngine)
    reports: list[dict[str, float]] = []

    def after(step: int, progress: Progress) -> bool:
        if step == parity.STEPS:
            reports.append(progress.report(place, parity.BATCH))
        return False

    train(
        round,
        networks,
        dict.fromkeys(round.sources, parity.batches(place)),
        training,
        place,
        steps=parity.STEPS,
        after=after,
    )
    (values,) = reports
    parts = [values.pop(f"time/{part}_s") for part in ("data", "forward", "backward", "update")]
    assert all(part > 0 for part in parts) and sum(parts) == values.pop("time/step_s")
    assert values.pop("train/samples_per_s") > 0 and values.pop("train/not_finite") == 0
    assert all(name.startswith("loss/student/") for name in values)


def test_dropout_is_a_function_of_the_step() -> None:
    """So that a resumed run drops what the run that was cut off would have."""
    training, place, round = parity.settings(0), Rank(0, 1, torch.device("cpu")), parity.CASES["reflow"]

    def trained(drawn_between: int) -> dict[str, torch.Tensor]:
        networks = parity.networks("reflow", training, place, TorchEngine)
        layers = [layer for layer in networks.engines["student"].module.modules() if isinstance(layer, nn.Dropout)]
        assert layers
        for layer in layers:
            layer.p = 0.1
        train(
            round,
            networks,
            dict.fromkeys(round.sources, parity.batches(place)),
            training,
            place,
            steps=parity.STEPS,
            after=lambda step, progress: torch.rand(drawn_between) is None,
        )
        return parity.states(networks, tuple(networks.engines))

    once, again = trained(0), trained(3)
    assert all(torch.equal(value, again[name]) for name, value in once.items())
