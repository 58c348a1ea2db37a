from __future__ import annotations

from collections import Counter
from itertools import islice

import pytest
import torch

from orchestrator.errors import BadInput
from orchestrator.loader import BLOCK, Loader, Order


class Groups:
    """Twenty-three row groups of two to five rows; a row's value says which it is."""

    def __init__(self, broken: int = -1) -> None:
        self.sizes = [2 + i % 4 for i in range(23)]
        self.reads: Counter[int] = Counter()
        self._broken = broken

    def read(self, group: int) -> dict[str, torch.Tensor]:
        self.reads[group] += 1
        if group == self._broken:
            raise BadInput(f"shard {group} is damaged")
        first = sum(self.sizes[:group])
        ids = torch.arange(first, first + self.sizes[group])
        return {"sample_id": ids, "condition_id": ids % 3, "x0": ids.float()[:, None]}


ROWS = sum(Groups().sizes)


def loader(groups: Groups, rows: range = range(8), seed: int = 0) -> Loader:
    return Loader(
        groups,
        batch_size=8,
        rows=rows,
        seed=seed,
        conditions={"prompt": torch.tensor([[10.0], [11.0], [12.0]])},
        uncond={"prompt": torch.tensor([[-1.0]])},
        device=torch.device("cpu"),
        columns=lambda columns: columns,
    )


def ids(loader: Loader, start: int, count: int) -> list[list[int]]:
    return [rows.columns["sample_id"].tolist() for rows in islice(loader.batches(start), count)]


def test_every_epoch_visits_every_row_once_in_another_order() -> None:
    order = Order(tuple(Groups().sizes), seed=3)
    starts = torch.tensor([0, *Groups().sizes]).cumsum(0)
    epochs = []
    for epoch in range(3):
        places = [order.locate(epoch * ROWS + i) for i in range(ROWS)]
        epochs.append([int(starts[group]) + row for group, row in places])
        assert sorted(epochs[-1]) == list(range(ROWS))
    assert epochs[0] != epochs[1] != epochs[2]


def test_two_ranks_read_the_halves_of_what_one_reads() -> None:
    whole = ids(loader(Groups()), 0, 30)
    halves = zip(ids(loader(Groups(), range(4)), 0, 30), ids(loader(Groups(), range(4, 8)), 0, 30), strict=True)
    assert [a + b for a, b in halves] == whole


def test_a_resumed_loader_continues_exactly() -> None:
    assert ids(loader(Groups()), 17, 10) == ids(loader(Groups()), 0, 27)[17:]


def test_another_seed_is_another_order() -> None:
    assert ids(loader(Groups(), seed=1), 0, 5) != ids(loader(Groups(), seed=2), 0, 5)


def test_rows_meet_their_conditions() -> None:
    rows = loader(Groups()).batch(4)
    assert (rows.cond["prompt"][:, 0] == 10 + rows.columns["sample_id"] % 3).all()
    assert (rows.uncond["prompt"] == -1).all() and len(rows.uncond["prompt"]) == 8


def test_an_epoch_reads_each_row_group_at_most_once() -> None:
    groups = Groups()
    one = loader(groups)
    for step in range(ROWS // 8):
        one.batch(step)
    assert len(groups.sizes) > 2 * BLOCK  # more than a loader keeps
    assert max(groups.reads.values()) == 1


def test_a_damaged_row_group_stops_the_loop_with_its_message() -> None:
    with pytest.raises(BadInput, match="shard 5 is damaged"):
        ids(loader(Groups(broken=5)), 0, ROWS)
