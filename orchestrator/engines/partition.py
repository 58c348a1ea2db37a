"""How an engine's trained weights are cut up over the ranks: in float32, as its optimizer holds them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

import torch
from torch import Tensor, nn
from torch import distributed as dist

Lay = Callable[[Sequence[Tensor]], None]  # parts over a copy of the network; every rank calls it


class Partition(Protocol):
    """The trained weights of one engine, or others that are cut as they are."""

    is_cut: bool  # or each rank has all

    def parts(self) -> list[Tensor]:
        """This rank's parts, which are the optimizer's own tensors."""
        ...

    def whole(self, parts: Sequence[Tensor]) -> Iterator[Tensor]:
        """Every weight in order, on the CPU, out of all ranks' parts; every rank calls it."""
        ...

    def onto(self, weights: Sequence[nn.Parameter]) -> Lay:
        """A function that lays parts over other weights like these, in the precision that the network computes in."""
        ...


class Whole:
    """Nothing is cut: one process, or ZeRO-0."""

    is_cut = False

    def __init__(self, weights: Sequence[nn.Parameter]) -> None:
        self._weights = weights

    def parts(self) -> list[Tensor]:
        """The weights themselves."""
        return [weight.detach() for weight in self._weights]

    def whole(self, parts: Sequence[Tensor]) -> Iterator[Tensor]:
        """Copy each weight."""
        return (weight.cpu().clone() for weight in parts)

    def onto(self, weights: Sequence[nn.Parameter]) -> Lay:
        """Copy weight by weight."""

        def lay(parts: Sequence[Tensor]) -> None:
            for weight, value in zip(weights, parts, strict=True):
                weight.data.copy_(value)

        return lay


class Flat:
    """ZeRO-1 and 2: all weights are one vector, and each rank steps a stretch of it that is as long as the others'."""

    is_cut = True

    def __init__(self, weights: Sequence[nn.Parameter], optimizer: Callable[[], Tensor]) -> None:
        """`optimizer` answers with what it steps. DeepSpeed has made the weights views of one vector."""
        self._weights, self._optimizer = weights, optimizer
        starts = [weight.storage_offset() for weight in weights]
        self._slices = [slice(start, start + w.numel()) for start, w in zip(starts, weights, strict=True)]

    def parts(self) -> list[Tensor]:
        """The one stretch that this rank steps."""
        return [self._optimizer().detach()]

    def whole(self, parts: Sequence[Tensor]) -> Iterator[Tensor]:
        """Broadcast one rank's stretch after the other, so that no device holds all of them."""
        (mine,) = parts
        stretches: list[Tensor] = []
        for rank in range(dist.get_world_size()):
            stretch = torch.empty_like(mine, device=self._weights[0].device)
            dist.broadcast(stretch.copy_(mine) if rank == dist.get_rank() else stretch, rank)
            stretches.append(stretch.cpu())
        flat = torch.cat(stretches)
        return (flat[at].view(w.shape).clone() for at, w in zip(self._slices, self._weights, strict=True))

    def onto(self, weights: Sequence[nn.Parameter]) -> Lay:
        """The other weights become views of one vector too, which is gathered in place."""
        length = sum(stretch.numel() for stretch in self.parts())
        flat = self._weights[0].new_empty(length * dist.get_world_size())
        for weight, at in zip(weights, self._slices, strict=True):
            weight.data = flat[at].view(weight.shape)
        mine = flat.chunk(dist.get_world_size())[dist.get_rank()]

        def lay(parts: Sequence[Tensor]) -> None:
            mine.copy_(parts[0])
            dist.all_gather_into_tensor(flat, mine)

        return lay


class Sharded:
    """ZeRO-3: each weight is cut up by itself, with zeros after its end; so are other networks that losses call."""

    is_cut = True

    def __init__(self, weights: Sequence[nn.Parameter], optimizer: Callable[[nn.Parameter], Tensor]) -> None:
        """`optimizer` answers with what it steps of a weight."""
        self._weights, self._optimizer = weights, optimizer

    def parts(self) -> list[Tensor]:
        """This rank's shard of each weight."""
        return [self._optimizer(weight).detach() for weight in self._weights]

    def whole(self, parts: Sequence[Tensor]) -> Iterator[Tensor]:
        """Gather weight after weight."""
        for weight, shard in zip(self._weights, parts, strict=True):
            shape: torch.Size = weight.ds_shape  # pyright: ignore[reportAttributeAccessIssue] - set by DeepSpeed
            mine = shard.flatten().to(weight.device)
            shards = [torch.empty_like(mine) for _ in range(dist.get_world_size())]
            dist.all_gather(shards, mine)
            yield torch.cat(shards)[: shape.numel()].view(shape).cpu()

    def onto(self, weights: Sequence[nn.Parameter]) -> Lay:
        """Each rank its own shards; nothing is gathered but while a layer runs.

        DeepSpeed would keep a small weight gathered once it was, and never see what is laid over its shard.
        """
        for weight in weights:
            weight.ds_persist = False  # pyright: ignore[reportAttributeAccessIssue] - set by DeepSpeed

        def lay(parts: Sequence[Tensor]) -> None:
            for weight, value in zip(weights, parts, strict=True):
                shard = weight.ds_tensor.data  # pyright: ignore[reportAttributeAccessIssue] - set by DeepSpeed
                shard.copy_(value.view_as(shard))

        return lay
