"""How far apart two pictures look: the distances of perceptual losses."""

from __future__ import annotations

import warnings

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fewstep.orchestrator.errors import BadInput
from fewstep.orchestrator.features.feature_networks import LOSSES, FeatureNetwork, layered_network, loading
from fewstep.orchestrator.features.picture_sizes import SMALLEST_PX, limited, resize, size_of


class Perceptual(nn.Module):
    """LPIPS (arXiv:1801.03924) without its learned weights: it serves with any feature network."""

    def __init__(self, features: FeatureNetwork) -> None:
        super().__init__()
        self.network, self._features = features.network, features

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        """The mean over layers and places of how far apart unit vectors of channels are, squared; per sample."""
        layers = zip(self._features.maps((a + 1) / 2), self._features.maps((b + 1) / 2), strict=True)
        distances = [((F.normalize(x) - F.normalize(y)) ** 2).sum(1).mean((1, 2)) for x, y in layers]
        return sum(distances, a.new_zeros(len(a))) / len(distances)


class LearnedPerceptual(nn.Module):
    """LPIPS itself: its authors' package has the trunk, VGG16, and the weights that were learned from people."""

    def __init__(self, path: str) -> None:
        super().__init__()
        from lpips import LPIPS  # pyright: ignore[reportMissingImports] - an extra's, as the next
        from torchvision.models import VGG16_Weights  # pyright: ignore[reportMissingImports]

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it asks torchvision for an untrained VGG16 in a way that is out of date
            self.network = LPIPS(net="vgg", pnet_rand=True, verbose=False)
        if path:
            weights = torch.load(path, map_location="cpu", weights_only=True)
        else:
            weights = VGG16_Weights.IMAGENET1K_V1.get_state_dict(progress=False, check_hash=True)
        trunk = self.network.net
        names = {name.partition(".")[2]: name for name in trunk.state_dict()}  # 0.weight: slice1.0.weight
        layers = {name.removeprefix("features."): weight for name, weight in weights.items()}
        trunk.load_state_dict({names[name]: weight for name, weight in layers.items() if name in names})
        self.requires_grad_(False).eval()

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        """The package's distance, per sample."""
        a, b = (resize(images, limited(size_of(images), SMALLEST_PX)) for images in (a, b))
        return self.network(a, b).flatten()


def is_learned(name: str) -> bool:
    """Whether a name is LPIPS's: lpips, or lpips:VGG16_FILE."""
    return name.partition(":")[0] == "lpips"


def perceptual_distance(name: str, device: str | torch.device = "cpu") -> nn.Module:
    """Load a distance of images [b, 3, height, width] in -1..1. Raises BadInput where it is not there."""
    if not is_learned(name):
        return Perceptual(layered_network(name, device))
    try:
        with loading(name, LOSSES):
            return LearnedPerceptual(name.partition(":")[2]).to(device)
    except ImportError as error:
        raise BadInput(
            f"{LOSSES}: {name} needs the packages lpips and torchvision ({error}); install the extra fewstep[lpips]"
        ) from error
