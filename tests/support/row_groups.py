"""Row groups in memory, and a loader of them."""

from __future__ import annotations

from collections import Counter

import torch

from fewstep.orchestrator.dataloader.loader import Loader
from fewstep.orchestrator.errors import BadInput


class Groups:
    """Twenty-three row groups of two to five rows; a row's value says which it is. Some may be of twice the length."""

    def __init__(self, broken: int = -1, every: int = 99) -> None:
        self.sizes = [2 + i % 4 for i in range(23)]
        self.shapes = [(2,) if i % every == every - 1 else (1,) for i in range(23)]
        self.reads: Counter[int] = Counter()
        self._broken = broken

    def read(self, group: int) -> dict[str, torch.Tensor]:
        self.reads[group] += 1
        if group == self._broken:
            raise BadInput(f"shard {group} is damaged")
        first = sum(self.sizes[:group])
        ids = torch.arange(first, first + self.sizes[group])
        return {"sample_id": ids, "condition_id": ids % 3, "x0": ids.float()[:, None].repeat(1, *self.shapes[group])}


def loader(groups: Groups, rows: range = range(8), seed: int = 0, device: str = "cpu") -> Loader:
    return Loader(
        groups,
        batch_size=8,
        rows=rows,
        seed=seed,
        conditions={"prompt": torch.tensor([[10.0], [11.0], [12.0]])},
        uncond={"prompt": torch.tensor([[-1.0]])},
        size_conditioning={(1,): {}, (2,): {"size": torch.tensor([[2.0]])}},
        device=torch.device(device),
        columns=lambda columns: columns,
    )
