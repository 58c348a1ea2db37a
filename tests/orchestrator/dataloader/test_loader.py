from __future__ import annotations

import itertools
from collections import Counter
from itertools import islice

import pytest
import torch

from fewstep.orchestrator.dataloader.loader import Loader
from fewstep.orchestrator.dataloader.order import BLOCK, Order
from fewstep.orchestrator.errors import BadInput
from tests.support.row_groups import Groups, loader

ROWS = sum(Groups().sizes)


def ids(loader: Loader, start: int, count: int) -> list[list[int]]:
    return [rows.columns["sample_id"].tolist() for rows in islice(loader.batches(start), count)]


def test_every_epoch_visits_every_row_once_in_another_order() -> None:
    order = Order(tuple(Groups().sizes), seed=3)
    epochs = [visited(order, epoch).tolist() for epoch in range(3)]
    assert all(sorted(epoch) == list(range(ROWS)) for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2]


def visited(order: Order, epoch: int) -> torch.Tensor:
    """The rows of an epoch, numbered as they are stored, in its order."""
    starts, end = [0, *itertools.accumulate(order.sizes)], (epoch + 1) * sum(order.sizes)
    block, rows = order.block(epoch * sum(order.sizes)), list[int]()
    while block.start < end:
        rows += [starts[group] + row for group, row in block.rows]
        block = order.block(block.stop)
    return torch.tensor(rows)


def shared(rows: torch.Tensor, epoch: torch.Tensor, batch_size: int) -> float:
    """How many neighbours among these rows are in one batch of an epoch, as a share."""
    batch = epoch.argsort() // batch_size
    return (batch[rows[:-1]] == batch[rows[1:]]).float().mean().item()


def test_blocks_shuffle_almost_as_well_as_a_true_permutation() -> None:
    """A GiB of rows of 50 kB in batches of 32: what the loader's docstring says of the order, and what README does."""
    groups, rows, batch_size = 256, 80, 32
    orders, generator = [Order((rows,) * groups, seed) for seed in range(4)], torch.Generator().manual_seed(0)
    epochs_of = [[visited(order, epoch) for epoch in range(6)] for order in orders]
    ours = epochs_of[0]
    true = [torch.randperm(groups * rows, generator=generator) for _ in range(6)]

    pairs = [pair for epochs in epochs_of for pair in itertools.pairwise(epochs)]
    correlations = [torch.corrcoef(torch.stack([rows.argsort().double() for rows in pair]))[0, 1] for pair in pairs]
    # A row's place in an epoch says nothing of its place in the next: row groups dealt at random have 1 / groups**0.5.
    assert torch.stack(correlations).square().mean().sqrt() < 1.5 / groups**0.5
    met = torch.tensor([len(set(batch.div(rows, rounding_mode="floor").tolist())) for batch in ours[0].split(32)])
    assert met.float().mean() > 0.95 * BLOCK
    again, at_random = (
        sum(shared(one, other, batch_size) for one, other in itertools.pairwise(epochs)) / 5 for epochs in (ours, true)
    )
    assert 0.001 < at_random < 0.002 and 0.005 < again < 0.01  # neighbours that are in one batch of the next epoch
    assert 0.03 < shared(torch.arange(groups * rows), ours[0], batch_size) < 0.06  # and those that are stored together


def test_two_ranks_read_the_halves_of_what_one_reads() -> None:
    whole = ids(loader(Groups()), 0, 30)
    halves = zip(ids(loader(Groups(), range(4)), 0, 30), ids(loader(Groups(), range(4, 8)), 0, 30), strict=True)
    assert [a + b for a, b in halves] == whole


def test_ranks_of_one_row_each_read_what_one_reads() -> None:
    parts = [ids(loader(Groups(), range(at, at + 1)), 0, 30) for at in range(8)]
    assert [sum(batch, []) for batch in zip(*parts, strict=True)] == ids(loader(Groups()), 0, 30)


def test_a_batch_that_is_kept_stays_as_it_is() -> None:
    """Though memory is used again: here a batch of each block and of two blocks, for three epochs."""
    kept = [
        (rows, rows.x0.clone(), rows.columns["sample_id"].tolist()) for rows in islice(loader(Groups()).batches(0), 30)
    ]
    for rows, x0, numbers in kept:
        assert torch.equal(rows.x0, x0) and rows.columns["sample_id"].tolist() == numbers
        assert x0[:, 0].tolist() == numbers


def test_a_resumed_loader_continues_exactly() -> None:
    assert ids(loader(Groups()), 17, 10) == ids(loader(Groups()), 0, 27)[17:]


def test_the_order_is_the_same_on_every_interpreter_and_another_for_every_seed() -> None:
    """Python's hash takes -1 for -2, and 2**61 - 1 for 0."""
    orders = [Order((4, 4, 4), seed).block(0).rows.tolist() for seed in (0, -2, -1, 2**61 - 1)]
    assert len({str(order) for order in orders}) == 4
    assert orders[0][:4] == [[0, 2], [1, 0], [1, 1], [0, 1]]


def test_another_seed_is_another_order() -> None:
    assert ids(loader(Groups(), seed=1), 0, 5) != ids(loader(Groups(), seed=2), 0, 5)


def test_rows_meet_their_conditions() -> None:
    rows = loader(Groups()).batch(4)
    assert (rows.cond["prompt"][:, 0] == 10 + rows.columns["sample_id"] % 3).all()
    assert (rows.uncond["prompt"] == -1).all() and len(rows.uncond["prompt"]) == 8


def test_an_epoch_reads_each_row_group_once_and_one_block_ahead() -> None:
    groups = Groups()
    one = loader(groups)
    for step in range(ROWS // 8):
        one.batch(step)
    assert len(groups.sizes) > 2 * BLOCK  # more than a loader holds
    assert groups.reads.total() <= len(groups.sizes) + BLOCK and max(groups.reads.values()) <= 2


def test_a_batch_has_one_shape_and_every_row_its_turn() -> None:
    groups = Groups(every=3)
    found = Counter[int]()
    seen = {(1,): Counter[int](), (2,): Counter[int]()}
    for rows in islice(loader(groups).batches(0), 90):
        shape = tuple(rows.x0.shape[1:])
        assert {groups.shapes[group_of(groups, id)] for id in rows.columns["sample_id"].tolist()} == {shape}
        seen[shape].update(rows.columns["sample_id"].tolist())
        found[len(shape) and shape[0]] += 1
    wide = sum(size for size, shape in zip(groups.sizes, groups.shapes, strict=True) if shape == (2,))
    assert abs(found[2] / 90 - wide / ROWS) < 0.05  # as often as there are rows of it
    for visits in seen.values():
        assert max(visits.values()) - min(visits.values()) <= 1
    assert sum(len(visits) for visits in seen.values()) == ROWS


def group_of(groups: Groups, id: int) -> int:
    return next(group for group in range(23) if id < sum(groups.sizes[: group + 1]))


def test_conditions_say_the_shape() -> None:
    both = list(islice(loader(Groups(every=3)).batches(0), 10))
    for rows in both:
        is_wide = rows.x0.shape[1] == 2
        assert ("size" in rows.cond, "size" in rows.uncond) == (is_wide, is_wide)
        assert not is_wide or (rows.cond["size"] == 2).all() and rows.cond["size"].shape == (8, 1)
    assert {rows.x0.shape[1] for rows in both} == {1, 2}


def test_shapes_change_nothing_of_ranks_and_resumes() -> None:
    whole = ids(loader(Groups(every=3)), 0, 40)
    halves = [ids(loader(Groups(every=3), rows), 0, 40) for rows in (range(4), range(4, 8))]
    assert [a + b for a, b in zip(*halves, strict=True)] == whole
    assert ids(loader(Groups(every=3)), 17, 23) == whole[17:]


def test_a_damaged_row_group_stops_the_loop_with_its_message() -> None:
    with pytest.raises(BadInput, match="shard 5 is damaged"):
        ids(loader(Groups(broken=5)), 0, ROWS)
