"""Ranks that train every case at every stage in one go, in two parts, and in parts of another number of ranks.

python resume.py RANK WORLD_SIZE PORT FOLDER PART CASE...
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from fewstep.orchestrator.engines.deepspeed import DeepSpeedEngine
from fewstep.orchestrator.engines.rank import Rank
from fewstep.orchestrator.training import network_state as snapshot
from fewstep.orchestrator.training.loop import train
from fewstep.orchestrator.training.round_networks import RoundNetworks
from tests.support import pair, parity
from tests.support.pair import joined

PARTS = {"straight": 2, "alone": 1, "back": 2}  # and by how many ranks, one after the other


def pairs_of(cases: Iterable[str]) -> list[tuple[str, int]]:
    """Each case with each stage that it is trained at."""
    return [(case, stage) for case in cases for stage in parity.STAGES if parity.is_possible(case, stage)]


def fresh(case: str, stage: int, place: Rank) -> RoundNetworks:
    """As at the start of the round, or of a process that resumes it."""
    return parity.networks(case, parity.settings(stage), place, DeepSpeedEngine)


def on(built: RoundNetworks, case: str, stage: int, place: Rank, start: int, end: int) -> RoundNetworks:
    """Trained from one step to another."""
    round, batches = parity.CASES[case], dict.fromkeys(parity.CASES[case].sources, parity.batches(place))
    train(
        round,
        built,
        batches,
        parity.settings(stage),
        place,
        steps=parity.STEPS,
        start=start,
        after=lambda done, progress: done == end,
    )
    return built


def states(built: RoundNetworks) -> dict[str, Tensor]:
    """Whole weights of all that is trained or averaged."""
    return parity.states(built, (*built.engines, *built.averages))


def straight(case: str, stage: int, place: Rank, folder: Path) -> None:
    """In one go, and resumed by as many ranks after the first step."""
    whole = states(on(fresh(case, stage, place), case, stage, place, 0, parity.STEPS))
    snapshot.save(on(fresh(case, stage, place), case, stage, place, 0, 1), folder / "by two", place.index)
    torch.distributed.barrier()
    resumed = fresh(case, stage, place)
    snapshot.load(resumed, folder / "by two", place.index)
    assert not any(engine.grad_norm() for engine in resumed.engines.values())  # for a report before their next update
    again = states(on(resumed, case, stage, place, 1, parity.STEPS))
    if place.index == 0:
        save_file(parity.start(case), folder / "start.safetensors")
        save_file(whole, folder / "whole.safetensors")
        differing = [name for name, value in whole.items() if not torch.equal(value, again[name])]
        (folder / "differing.json").write_text(json.dumps(differing))


def alone(case: str, stage: int, place: Rank, folder: Path) -> None:
    """The second step, by one process."""
    built = fresh(case, stage, place)
    resume(built, stage, folder / "by two", place, 2)
    snapshot.save(on(built, case, stage, place, 1, 2), folder / "by one", place.index)


def back(case: str, stage: int, place: Rank, folder: Path) -> None:
    """The last step, by two again."""
    built = fresh(case, stage, place)
    resume(built, stage, folder / "by one", place, 1)
    found = states(on(built, case, stage, place, 2, parity.STEPS))
    if place.index == 0:
        save_file(found, folder / "back.safetensors")


def resume(built: RoundNetworks, stage: int, folder: Path, place: Rank, world_size: int) -> None:
    """From what another number of ranks wrote."""
    if stage:
        snapshot.load_rescaled(built, folder, place, world_size)
    else:
        snapshot.load(built, folder, place.index)


def run(cases: Sequence[str], folder: Path) -> None:
    """Every part, one after the other."""
    for case, stage in pairs_of(cases):
        (folder / f"{case}-{stage}").mkdir()
    for part, size in PARTS.items():
        pair.run(__name__, folder, part, *cases, size=size)


def check_resumed(folder: Path) -> None:
    """By as many ranks, every bit is what it would have been."""
    assert json.loads((folder / "differing.json").read_text()) == []


def check_rescaled(folder: Path) -> None:
    """By other numbers of ranks, the same sums were made in another order."""
    start, whole, found = (load_file(folder / f"{name}.safetensors") for name in ("start", "whole", "back"))
    assert found.keys() == whole.keys()
    for name in parity.networks_of(whole):
        assert parity.distance(found, whole, name) < 5e-3 * parity.distance(whole, start, name), name


if __name__ == "__main__":
    with joined() as (place, folder):
        part, *cases = sys.argv[5:]
        for case, stage in pairs_of(cases):
            {"straight": straight, "alone": alone, "back": back}[part](case, stage, place, folder / f"{case}-{stage}")
