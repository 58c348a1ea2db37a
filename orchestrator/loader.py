"""Rows from a data set to the training loop, in an order that any number of workers can continue exactly.

The order is a function of (seed, epoch) alone: row groups are permuted, then rows are permuted within blocks
of row groups, so that a worker holds a few row groups at a time. Position p of the endless sequence of epochs
belongs to global batch p // batch_size; a loader's whole state is the number of batches seen.
"""

from __future__ import annotations

import bisect
import itertools
import queue
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Protocol

import torch
from torch import Tensor

from methods.base import Rows
from methods.diffusion import Cond

BLOCK = 8  # row groups that are shuffled together, and the most a loader keeps in memory


class RowGroups(Protocol):
    """A data set as the loader sees it."""

    @property
    def sizes(self) -> Sequence[int]:
        """Rows of each row group."""
        ...

    def read(self, group: int) -> Mapping[str, Tensor]:
        """The columns of one row group, checked against its hash."""
        ...


@dataclass(frozen=True)
class Order:
    """The endless shuffled sequence of rows."""

    sizes: tuple[int, ...]
    seed: int

    def locate(self, position: int) -> tuple[int, int]:
        """The (row group, row) at a position."""
        epoch, place = divmod(position, sum(self.sizes))
        starts = self._blocks(epoch)[1]
        block = bisect.bisect_right(starts, place) - 1
        return self._rows(epoch, block)[place - starts[block]]

    @lru_cache(maxsize=2)  # noqa: B019 - an Order lives as long as its loader
    def _blocks(self, epoch: int) -> tuple[list[list[int]], list[int]]:
        """The epoch's row groups in blocks, and the position that each block starts at."""
        groups = torch.randperm(len(self.sizes), generator=self._generator(epoch, 0)).tolist()
        blocks = [groups[i : i + BLOCK] for i in range(0, len(groups), BLOCK)]
        lengths = [sum(self.sizes[group] for group in block) for block in blocks]
        return blocks, list(itertools.accumulate(lengths, initial=0))[:-1]

    @lru_cache(maxsize=2)  # noqa: B019
    def _rows(self, epoch: int, block: int) -> list[tuple[int, int]]:
        rows = [(group, row) for group in self._blocks(epoch)[0][block] for row in range(self.sizes[group])]
        return [rows[i] for i in torch.randperm(len(rows), generator=self._generator(epoch, block + 1)).tolist()]

    def _generator(self, epoch: int, block: int) -> torch.Generator:
        return torch.Generator().manual_seed(hash((self.seed, epoch, block)) & (2**63 - 1))


class Loader:
    """One worker's part of each global batch, prefetched by a thread.

    `conditions` are looked up by the column `condition_id`; `uncond` is the null condition, one row.
    """

    def __init__(
        self,
        groups: RowGroups,
        *,
        batch_size: int,
        rows: range,
        seed: int,
        conditions: Cond,
        uncond: Cond,
        device: torch.device,
        columns: Callable[[dict[str, Tensor]], dict[str, Tensor]],
    ) -> None:
        self._groups, self._batch_size, self._rows, self._device = groups, batch_size, rows, device
        self._order = Order(tuple(groups.sizes), seed)
        self._conditions, self._uncond, self._columns = conditions, uncond, columns
        self._held: OrderedDict[int, Mapping[str, Tensor]] = OrderedDict()

    def batches(self, start: int) -> Iterator[Rows]:
        """The worker's rows of global batches start, start + 1, ... without end."""
        ready: queue.Queue[Rows | BaseException] = queue.Queue(maxsize=2)
        closed = threading.Event()

        def fill() -> None:
            for step in itertools.count(start):
                try:
                    item: Rows | BaseException = self.batch(step)
                except BaseException as error:  # noqa: BLE001 - raised again where the batch is asked for
                    item = error
                while not closed.is_set():
                    try:
                        ready.put(item, timeout=0.2)
                        break
                    except queue.Full:
                        continue
                if closed.is_set() or isinstance(item, BaseException):
                    return

        threading.Thread(target=fill, daemon=True, name="loader").start()
        try:
            while True:
                item = ready.get()
                if isinstance(item, BaseException):
                    raise item
                yield item
        finally:
            closed.set()

    def batch(self, step: int) -> Rows:
        """The worker's rows of one global batch, on the device but for their ids, which are read here."""
        columns = self._gather(step)
        condition = columns.pop("condition_id").long()
        cond = {name: table[condition].to(self._device) for name, table in self._conditions.items()}
        uncond = {name: value.expand(len(condition), *value.shape[1:]) for name, value in self._uncond.items()}
        chosen = self._columns(columns)
        return Rows(
            {name: chosen[name] if name == "sample_id" else chosen[name].to(self._device) for name in chosen},
            cond,
            {name: value.to(self._device) for name, value in uncond.items()},
        )

    def _gather(self, step: int) -> dict[str, Tensor]:
        positions = (step * self._batch_size + row for row in self._rows)
        places = [self._order.locate(position) for position in positions]
        parts = [(self._group(group), row) for group, row in places]
        return {name: torch.stack([group[name][row] for group, row in parts]) for name in parts[0][0]}

    def _group(self, group: int) -> Mapping[str, Tensor]:
        if group not in self._held:
            self._held[group] = self._groups.read(group)
            while len(self._held) > 2 * BLOCK:
                self._held.popitem(last=False)
        self._held.move_to_end(group)
        return self._held[group]
