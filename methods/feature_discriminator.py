"""Tell real images from generated ones by what a frozen feature network sees in them.

Sauer et al., "Adversarial Diffusion Distillation", arXiv:2311.17042, section 3.1.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol, runtime_checkable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fewstep.methods.base import Nets, callable_network
from fewstep.methods.batch import Rows
from fewstep.methods.diffusion import Cond

if TYPE_CHECKING:
    from jaxtyping import Float

HEAD_WIDTH = 64


@runtime_checkable
class FeatureMaps(Protocol):
    """Map images [b, 3, h, w] in -1..1 to one map [b, channels, h, w] per layer, by a frozen network."""

    channels: Sequence[int]
    cond_width: int  # of `pooled` conditions

    def __call__(self, images: Tensor, /) -> list[Tensor]: ...  # noqa: D102 - the class says it


class Head(nn.Module):
    """Judge every position of one map by a logit and its inner product with the projected condition.

    The projection is that of arXiv:1802.05637.
    """

    def __init__(self, channels: int, cond_width: int, image_width: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(channels, HEAD_WIDTH, 1),
            nn.LeakyReLU(0.2),
            nn.Conv2d(HEAD_WIDTH, HEAD_WIDTH, 3, padding=1),
            nn.GroupNorm(8, HEAD_WIDTH),
            nn.LeakyReLU(0.2),
        )
        self.logit = nn.Conv2d(HEAD_WIDTH, 1, 1)
        self.text = nn.Linear(cond_width, HEAD_WIDTH)
        self.image = nn.Linear(image_width, HEAD_WIDTH)

    def forward(self, features: Tensor, text: Tensor, image: Tensor) -> Tensor:
        """Logits [b, positions]."""
        hidden = self.body(features)
        projected = (self.text(text) + self.image(image))[..., None, None]
        return (self.logit(hidden) + (hidden * projected).sum(1, keepdim=True) / math.sqrt(HEAD_WIDTH)).flatten(1)


class Discriminator(nn.Module):
    """Put one light head on each layer of the feature network."""

    def __init__(self, features: FeatureMaps) -> None:
        super().__init__()
        width = features.channels[-1]
        self.heads = nn.ModuleList(Head(channels, features.cond_width, width) for channels in features.channels)

    def forward(self, maps: Sequence[Tensor], text: Tensor, image: Tensor) -> list[Tensor]:
        """The logits of each head."""
        return [head(layer, text, image) for head, layer in zip(self.heads, maps, strict=True)]


def discriminator_heads(features: nn.Module) -> nn.Module:
    """Build the discriminator on top of a feature network."""
    if not isinstance(features, FeatureMaps):
        raise TypeError(f"a {type(features).__name__} does not say the channels of its maps, and the conditions' width")
    return Discriminator(features)


def pooled(cond: Cond) -> Float[Tensor, "b width"]:
    """Join a condition's entries, each averaged over its tokens, to one vector per sample."""
    entries = (cond[name].float() for name in sorted(cond))
    return torch.cat([entry.mean(1) if entry.ndim > 2 else entry for entry in entries], 1)


def image_features(nets: Nets, x0: Float[Tensor, "b *latent"]) -> list[Tensor]:
    """Map what latents decode to; gradients pass to the latents."""
    return callable_network(nets, "features")(callable_network(nets, "decoder")(x0))


def hinge_loss(nets: Nets, generated: Tensor, real: Rows, r1_weight: float = 0.0) -> Tensor:
    """Equation 3: hinge on real and on generated samples, R1 on the heads' inputs of the real ones."""
    with torch.no_grad():
        maps, fakes = image_features(nets, real.x0), image_features(nets, generated)
        image = maps[-1].mean((2, 3))
    discriminator, text = callable_network(nets, "discriminator"), pooled(real.cond)
    maps = [layer.requires_grad_(r1_weight > 0) for layer in maps]
    reals = discriminator(maps, text, image)
    losses = [F.relu(1 - logits).mean() for logits in reals]
    losses += [F.relu(1 + logits).mean() for logits in discriminator(fakes, text, image)]
    if r1_weight:
        slopes = torch.autograd.grad([logits.mean(1).sum() for logits in reals], maps, create_graph=True)
        losses += [r1_weight * (slope**2).flatten(1).sum(1).mean() for slope in slopes]
    return torch.stack(losses).sum()


def fooling_loss(nets: Nets, generated: Float[Tensor, "b *latent"], real: Rows) -> Tensor:
    """Equation 2: the sum of the heads' mean logits on generated samples, negated."""
    with torch.no_grad():
        image = image_features(nets, real.x0)[-1].mean((2, 3))
    logits = callable_network(nets, "discriminator")(image_features(nets, generated), pooled(real.cond), image)
    return -torch.stack([layer.mean() for layer in logits]).sum()
