"""Networks that losses call and nobody trains, for latents of a teacher: decoder, feature maps, perceptual distance."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from methods.base import Frozen
from orchestrator.family import Family
from orchestrator.features import FeatureNetwork, feature_network
from orchestrator.teacher import Teacher


class Decoder(nn.Module):
    """Latents to images [b, 3, height, width] in -1..1, through the teacher's own decoder where it has one."""

    def __init__(self, family: Family) -> None:
        super().__init__()
        self._family = family

    def forward(self, latents: Tensor) -> Tensor:
        """Gradients pass."""
        return self._family.decode(latents)


class Maps(nn.Module):
    """Images in -1..1 to the maps of a feature network's layers."""

    def __init__(self, features: FeatureNetwork, cond_width: int) -> None:
        super().__init__()
        self.network, self._features = features.network, features
        self.channels, self.cond_width = features.channels, cond_width

    def forward(self, images: Tensor) -> list[Tensor]:
        """One per layer."""
        return self._features.maps((images + 1) / 2)


class Perceptual(nn.Module):
    """LPIPS (arXiv:1801.03924) without its learned weights: it serves with any feature network."""

    def __init__(self, features: FeatureNetwork) -> None:
        super().__init__()
        self.maps = Maps(features, 0)

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        """Per sample, the mean over layers and places of how far apart unit vectors of channels are, squared."""
        layers = zip(self.maps(a), self.maps(b), strict=True)
        apart = [((F.normalize(x) - F.normalize(y)) ** 2).sum(1).mean((1, 2)) for x, y in layers]
        return sum(apart, a.new_zeros(len(a))) / len(apart)


def frozen_network(net: Frozen, teacher: Teacher, features: str) -> nn.Module:
    """The network for a role. Raises BadInput where the feature network is not there."""
    if net.role == "decoder":
        return Decoder(teacher.family)
    network = feature_network(features, teacher.device, "training")
    if net.role == "perceptual":
        return Perceptual(network)
    return Maps(network, sum(entry.shape[-1] for entry in teacher.encode([""]).values()))
