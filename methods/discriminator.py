"""A discriminator on what a denoiser sees in its middle: it tells real samples from generated ones under any noise.

Yin et al., "Improved Distribution Matching Distillation", arXiv:2405.14867, section 4.3.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol, cast

from fewstep.methods.diffusion import Cond, Denoiser, Network
from fewstep.methods.lazy_torch import torch

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor, nn

HEAD_WIDTH = 64


class Judging(Protocol):
    """A denoiser's network that carries a head on its middle, where its features are coarsest."""

    head: Callable[[Tensor], Tensor]

    @property
    def middle_channels(self) -> int:
        """Of `middle`."""
        ...

    def middle(self, x_t: Tensor, time: Tensor, cond: Cond, /) -> Tensor:
        """[b, channels, height, width], without computing what follows it; gradients pass."""
        ...

    def with_middle(self, x_t: Tensor, time: Tensor, cond: Cond, /) -> tuple[Tensor, Tensor]:
        """The answer too, in front."""
        ...


def bottleneck_head(network: nn.Module) -> nn.Module:
    """Put a logit on every position of a denoiser's middle.

    The authors' has strided convolutions down to one logit a sample, which fixes the size of pictures.
    """
    return torch.nn.Sequential(
        torch.nn.Conv2d(_judging(network).middle_channels, HEAD_WIDTH, 3, padding=1),
        torch.nn.GroupNorm(8, HEAD_WIDTH),
        torch.nn.SiLU(),
        torch.nn.Conv2d(HEAD_WIDTH, 1, 1),
    )


def _judging(network: Network | nn.Module) -> Judging:
    return cast(Judging, network)  # an engine around a network hands on its attributes, which no check can see


def logits(denoiser: Denoiser, x_t: Float[Tensor, "b *latent"], t: Float[Tensor, "b"], cond: Cond) -> Tensor:
    """How real a noised sample is, by what the denoiser sees of it."""
    network = _judging(denoiser.net)
    return network.head(network.middle(x_t, denoiser.schedule.network_time(t), cond))


def answer_and_logits(
    denoiser: Denoiser, x_t: Float[Tensor, "b *latent"], t: Float[Tensor, "b"], cond: Cond
) -> tuple[Float[Tensor, "b *latent"], Tensor]:
    """What the denoiser says of a noised sample, and how real it is, by one evaluation."""
    network = _judging(denoiser.net)
    answer, middle = network.with_middle(x_t, denoiser.schedule.network_time(t), cond)
    return answer.float(), network.head(middle)
