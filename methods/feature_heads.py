"""Light discriminator heads on the maps of a frozen feature network.

Sauer et al., "Adversarial Diffusion Distillation", arXiv:2311.17042, section 3.1.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from torch import nn

if TYPE_CHECKING:
    from torch import Tensor

    from fewstep.methods.feature_discriminator import FeatureMaps

HEAD_WIDTH = 64


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


class FeatureHeads(nn.Module):
    """Put one light head on each layer of the feature network."""

    def __init__(self, features: FeatureMaps) -> None:
        super().__init__()
        width = features.channels[-1]
        self.heads = nn.ModuleList(Head(channels, features.cond_width, width) for channels in features.channels)

    def forward(self, maps: Sequence[Tensor], text: Tensor, image: Tensor) -> list[Tensor]:
        """The logits of each head."""
        return [head(layer, text, image) for head, layer in zip(self.heads, maps, strict=True)]
