"""Orders a data set's rows: an endless shuffled sequence, and whose turn a batch is among several of them."""

from __future__ import annotations

import bisect
import itertools
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np
import torch

from fewstep.methods.batch import mix

BLOCK = 8  # row groups that are shuffled together; a worker holds its rows of two blocks of each shape


@dataclass(frozen=True, eq=False)
class ShuffleBlock:
    """Row groups that are shuffled together, at their place in the endless sequence."""

    start: int  # position of the first row
    groups: list[int]
    rows: np.ndarray  # [rows, 2], the row group and the row at each position

    @property
    def stop(self) -> int:
        """Position of the next block's first row."""
        return self.start + len(self.rows)


@dataclass(frozen=True, eq=False)
class Order:
    """The endless shuffled sequence of rows."""

    sizes: tuple[int, ...]
    seed: int

    def block(self, position: int) -> ShuffleBlock:
        """The block that a position is in."""
        epoch, row = divmod(position, self._epoch_rows)
        return self._block(epoch, bisect.bisect_right(self._blocks(epoch)[1], row) - 1)

    @cached_property
    def longest(self) -> int:
        """Rows that a block can have."""
        return sum(sorted(self.sizes)[-BLOCK:])

    @cached_property
    def _epoch_rows(self) -> int:
        return sum(self.sizes)

    @cached_property
    def _blocks(self) -> Callable[[int], tuple[list[list[int]], list[int]]]:
        return lru_cache(maxsize=2)(self._deal)

    @cached_property
    def _block(self) -> Callable[[int, int], ShuffleBlock]:
        return lru_cache(maxsize=4)(self._shuffle)

    def _deal(self, epoch: int) -> tuple[list[list[int]], list[int]]:
        """The epoch's row groups in blocks, and the row that each block starts at."""
        groups = torch.randperm(len(self.sizes), generator=self._generator(epoch, 0)).tolist()
        blocks = [groups[i : i + BLOCK] for i in range(0, len(groups), BLOCK)]
        lengths = [sum(self.sizes[group] for group in block) for block in blocks]
        return blocks, list(itertools.accumulate(lengths, initial=0))[:-1]

    def _shuffle(self, epoch: int, number: int) -> ShuffleBlock:
        """One of the epoch's blocks with its rows in random order."""
        blocks, starts = self._blocks(epoch)
        rows = np.array([(group, row) for group in blocks[number] for row in range(self.sizes[group])])
        shuffled = torch.randperm(len(rows), generator=self._generator(epoch, number + 1)).numpy()
        return ShuffleBlock(epoch * self._epoch_rows + starts[number], blocks[number], rows[shuffled])

    def _generator(self, epoch: int, block: int) -> torch.Generator:
        return torch.Generator().manual_seed(mix(self.seed, epoch, block))


@dataclass(frozen=True, eq=False)
class Turns:
    """Whose turn a batch is, of sequences that share none."""

    lengths: tuple[int, ...]  # batches of each one in an epoch
    seed: int

    def of(self, step: int) -> tuple[int, int]:
        """The sequence of a global batch, and how many batches it had before."""
        if len(self.lengths) == 1:
            return 0, step
        epoch, batch = divmod(step, sum(self.lengths))
        turns = self._turns(epoch)
        sequence = turns[batch]
        return sequence, epoch * self.lengths[sequence] + turns[:batch].count(sequence)

    @cached_property
    def _turns(self) -> Callable[[int], list[int]]:
        return lru_cache(maxsize=2)(self._draw)

    def _draw(self, epoch: int) -> list[int]:
        """The epoch's batches in order."""
        turns = [number for number, length in enumerate(self.lengths) for _ in range(length)]
        generator = torch.Generator().manual_seed(mix(self.seed, epoch))
        return [turns[i] for i in torch.randperm(len(turns), generator=generator).tolist()]
