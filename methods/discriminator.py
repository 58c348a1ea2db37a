"""A discriminator on what a denoiser sees in its middle: it tells real samples from generated ones under any noise.

Yin et al., "Improved Distribution Matching Distillation", arXiv:2405.14867, section 4.3.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol, cast

from fewstep.methods.base import Nets, callable_network
from fewstep.methods.batch import Draw, Rows
from fewstep.methods.diffusion import Cond, Network, diffuse
from fewstep.methods.lazy_torch import torch

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor, nn

HEAD_WIDTH = 64


class Bottleneck(Protocol):
    """Show what a denoiser's network sees in its middle, where its features are coarsest."""

    @property
    def middle_channels(self) -> int:
        """Of `middle`."""
        ...

    def middle(self, x_t: Tensor, time: Tensor, cond: Cond, /) -> Tensor:
        """[b, channels, height, width]; gradients pass."""
        ...


def bottleneck_head(network: nn.Module) -> nn.Module:
    """Put a logit on every position of a denoiser's middle."""
    return torch.nn.Sequential(
        torch.nn.Conv2d(_bottleneck(network).middle_channels, HEAD_WIDTH, 3, padding=1),
        torch.nn.GroupNorm(8, HEAD_WIDTH),
        torch.nn.SiLU(),
        torch.nn.Conv2d(HEAD_WIDTH, 1, 1),
    )


def _bottleneck(network: Network | nn.Module) -> Bottleneck:
    return cast(Bottleneck, network)  # an engine around a network hands on its attributes, which no check can see


def logits(nets: Nets, x0: Float[Tensor, "b *latent"], cond: Cond, draw: Draw) -> Tensor:
    """How real a sample is, by what the fake score sees of it under noise of any time."""
    fake = nets["fake_score"]
    t = fake.schedule.at(draw.uniform())
    x_t = diffuse(fake.schedule, x0, draw.normal(x0), t)
    features = _bottleneck(fake.net).middle(x_t, fake.schedule.network_time(t), cond)
    return callable_network(nets, "discriminator")(features)


def classification(nets: Nets, generated: Float[Tensor, "b *latent"], prompts: Rows, data: Rows, draw: Draw) -> Tensor:
    """-log D of real samples, and -log(1 - D) of generated ones."""
    fake, real = logits(nets, generated, prompts.cond, draw), logits(nets, data.x0, data.cond, draw)
    return torch.nn.functional.softplus(fake).mean() + torch.nn.functional.softplus(-real).mean()
