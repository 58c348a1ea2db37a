"""Hand a loss what it sees: rows by source, on the device, and random numbers that no rank can change."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from fewstep.methods.diffusion import Cond
from fewstep.methods.lazy_torch import torch

if TYPE_CHECKING:
    from jaxtyping import Float, Int
    from torch import Tensor


def to_device_async(tensor: Tensor, device: torch.device | str) -> Tensor:
    """Copy a tensor to a device, behind all that it still has to do; a plain copy would wait for that."""
    is_leaving = tensor.device.type == "cpu" and torch.device(device).type == "cuda"
    return (tensor.pin_memory() if is_leaving else tensor).to(device, non_blocking=True)


MASK = (1 << 64) - 1


def mix(*ints: int) -> int:
    """Mix integers, in this order, into one number of 64 bits by SplitMix64.

    It is the same on every machine and interpreter, which Python does not promise of a tuple's `hash`.
    """
    key = 0
    for number in ints:
        key = (key + number + 0x9E3779B97F4A7C15) & MASK
        key = (key ^ (key >> 30)) * 0xBF58476D1CE4E5B9 & MASK
        key = (key ^ (key >> 27)) * 0x94D049BB133111EB & MASK
        key ^= key >> 31
    return key


class Draw:
    """Draw the random numbers of one update.

    A draw is a function of (seed, update, step), of how many draws came before it, and of the sample's
    place in the global batch; never of the rank that asks. So any number of ranks sees the same numbers,
    and a resumed run needs no generator state. torch's generators on the CPU keep 32 bits of a seed: of a million rows
    about a hundred pairs draw the same noise.
    """

    def __init__(self, seed: int, step: int, update: int, rows: range, device: torch.device | str = "cpu") -> None:
        self.seed, self.step, self.update, self.rows, self.device = seed, step, update, rows, device
        self._calls = 0

    def seed_layers(self) -> None:
        """Seed torch's own generators, which dropout draws from: its masks alone depend on how a batch is cut up."""
        torch.manual_seed(self._key(self.rows.start))

    def normal(self, like: Float[Tensor, "b *latent"]) -> Float[Tensor, "b *latent"]:
        """Unit Gaussian noise of that shape, in float32."""
        return self._per_row(lambda g: torch.randn(like.shape[1:], generator=g))

    def uniform(self, low: float = 0.0, high: float = 1.0) -> Float[Tensor, "b"]:
        """One number per sample in [low, high)."""
        return low + (high - low) * self._per_row(lambda g: torch.rand((), generator=g))

    def integer(self, low: int, high: int) -> int:
        """One integer in [low, high) for the whole global batch, the same on every rank."""
        self._calls += 1
        return low + mix(self.seed, self.step, self.update, self._calls) % (high - low)

    def integers(self, low: int, high: int) -> Int[Tensor, "b"]:
        """One integer per sample in [low, high)."""
        return self._per_row(lambda g: torch.randint(low, high, (), generator=g))

    def _per_row(self, draw: Callable[[torch.Generator], Tensor]) -> Tensor:
        self._calls += 1
        generator = torch.Generator()
        values = [draw(generator.manual_seed(self._key(row))) for row in self.rows]
        return to_device_async(torch.stack(values), self.device)

    def _key(self, row: int) -> int:
        return mix(self.seed, self.step, self.update, self._calls, row)


@dataclass(frozen=True)
class Rows:
    """Hold rows of one source, on the device. A column that the source does not have is an error, never None."""

    columns: Mapping[str, Tensor]
    cond: Cond = dataclasses.field(default_factory=dict)  # what the rows are conditioned on, each entry [b, ...]
    uncond: Cond = dataclasses.field(default_factory=dict)  # the null condition, same entries

    def _column(self, name: str) -> Tensor:
        if name not in self.columns:
            raise KeyError(f"this source has no column {name!r}, only {', '.join(sorted(self.columns))}")
        return self.columns[name]

    @property
    def x0(self) -> Float[Tensor, "b *latent"]:
        """The clean latent: real data, or the end of a teacher's trajectory."""
        return self._column("x0")

    @property
    def x_t(self) -> Float[Tensor, "b *latent"]:
        """What a student is asked about."""
        return self._column("x_t")

    @property
    def t(self) -> Float[Tensor, "b"]:
        """The schedule's time of `x_t`."""
        return self._column("t")

    @property
    def blank(self) -> Float[Tensor, "b *latent"]:
        """Zeros of the latents' shape, for rows that are conditions alone."""
        return self._column("blank")

    @property
    def noise(self) -> Float[Tensor, "b *latent"]:
        """The unit noise that `x0` was generated from."""
        return self._column("noise")

    @property
    def path(self) -> Float[Tensor, "b points *latent"]:
        """The stored points of the ODE, noise first."""
        return self._column("path")

    @property
    def times(self) -> Float[Tensor, "b points"]:
        """The schedule's time of each point of `path`."""
        return self._column("times")

    @property
    def guidance_scale(self) -> Float[Tensor, "b"]:
        """The guidance scale that the row was generated with; 1 is none."""
        return self._column("guidance_scale")

    def __len__(self) -> int:
        return len(next(iter((self.columns or self.cond).values())))

    def take(self, rows: slice) -> Rows:
        """Cut out some of the rows."""
        return Rows(_slice(self.columns, rows), _slice(self.cond, rows), _slice(self.uncond, rows))

    @classmethod
    def join(cls, several: Sequence[Rows]) -> Rows:
        """Put rows together again that were cut apart."""
        return cls(
            _join([rows.columns for rows in several]),
            _join([rows.cond for rows in several]),
            _join([rows.uncond for rows in several]),
        )


def _slice(tensors: Mapping[str, Tensor], rows: slice) -> dict[str, Tensor]:
    return {name: tensor[rows] for name, tensor in tensors.items()}


def _join(several: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    return {name: torch.cat([tensors[name] for tensors in several]) for name in several[0]}


@dataclass(frozen=True)
class Batch:
    """Bring a loss all that it sees: rows by source, and where its random numbers come from."""

    sources: Mapping[str, Rows]
    draw: Draw

    def __getitem__(self, source: str) -> Rows:
        return self.sources[source]
