"""Losses see pictures whole, and evaluations say where they do not."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from fewstep.orchestrator.errors import BadInput
from fewstep.orchestrator.evaluation.evaluator_pool import evaluation_prompts, open_pool
from fewstep.orchestrator.evaluation.system import System
from fewstep.orchestrator.features.feature_networks import INCEPTION_PX, feature_network, layered_network
from fewstep.orchestrator.features.perceptual import perceptual_distance
from fewstep.orchestrator.planning.preflight import preflight, warnings
from fewstep.orchestrator.recipe.parsing import parse
from fewstep.orchestrator.recipe.recipe import Recipe
from fewstep.orchestrator.teachers.teacher import Teacher
from tests.support import tiny
from tests.support.vision import WIDTH, clip_of, dino_of, registered_dino_of

Network = Callable[[Path], Path]


def checkerboard(side: int, square: int = 4) -> Tensor:
    """One picture in -0.5..0.5, of which flat grey is the mean."""
    numbers = torch.arange(side) // square % 2
    return ((numbers[:, None] + numbers) % 2 - 0.5).expand(1, 3, -1, -1)


def clouds(side: int) -> Tensor:
    """One smooth picture of normal colours, many of them out of -1..1."""
    coarse = torch.randn(1, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    return F.interpolate(coarse, size=(side, side), mode="bicubic")


def slope(distance: torch.nn.Module, one: Tensor, other: Tensor) -> tuple[float, Tensor]:
    """A distance, and its gradient by the first picture."""
    one = one.clone().requires_grad_()
    value = distance(one, other).sum()
    value.backward()
    assert one.grad is not None
    return value.item(), one.grad


def test_a_perceptual_loss_sees_a_fault_of_four_pixels() -> None:
    board = checkerboard(512)
    value, gradient = slope(perceptual_distance("mobilenetv2"), board, torch.zeros_like(board))
    # Shrunk to 64 px they are both grey: 2.5e-6, and 6.6e-5.
    assert value > 0.5 and gradient.norm() > 5e-3


def test_a_perceptual_loss_pulls_back_what_is_over_exposed() -> None:
    picture = 1.5 * clouds(512)
    value, gradient = slope(perceptual_distance("mobilenetv2"), picture, picture.clamp(-1, 1))
    assert value > 0.1 and gradient[picture.abs() > 1].norm() > 5e-3


@pytest.mark.parametrize("height", [128, 96])
def test_convolutions_map_each_place_of_a_picture(height: int) -> None:
    maps = layered_network("mobilenetv2").maps(torch.rand(2, 3, height, 160))
    assert [tuple(layer.shape[2:]) for layer in maps] == [(height // n, 160 // n) for n in (4, 8, 16, 32)]


def test_a_small_picture_is_enlarged_in_its_aspect() -> None:
    network, picture = layered_network("mobilenetv2"), torch.rand(1, 3, 32, 48)
    larger = F.interpolate(picture, size=(64, 96), mode="bilinear", antialias=True)
    for small, large in zip(network.maps(picture), network.maps(larger), strict=True):
        assert torch.equal(small, large)


@pytest.mark.parametrize("network", [clip_of, dino_of, registered_dino_of], ids=["clip", "dinov2", "registers"])
@pytest.mark.parametrize("size", [(266, 300), (300, 266), (224, 448)], ids=str)
def test_transformers_map_each_whole_patch_of_a_picture(
    network: Network, size: tuple[int, int], tmp_path: Path
) -> None:
    kind = "clip" if network is clip_of else "dinov2"
    layers = layered_network(f"{kind}:{network(tmp_path)}")
    picture = torch.rand(2, 3, *size, generator=torch.Generator().manual_seed(0)).requires_grad_()
    maps = layers.maps(picture)
    assert [tuple(layer.shape) for layer in maps] == [(2, WIDTH, size[0] // 14, size[1] // 14)] * 4
    maps[-1].std().backward()
    assert picture.grad is not None
    reached = picture.grad.abs().sum((0, 1)) > 0
    for side, rows in zip(size, (reached.any(1), reached.any(0)), strict=True):
        first = side % 14 // 2  # the remainder is cut off at both edges
        assert rows.nonzero().flatten().tolist() == list(range(first, first + side // 14 * 14))


def test_a_patchs_place_in_a_map_is_its_place_in_the_picture(tmp_path: Path) -> None:
    network = layered_network(f"clip:{clip_of(tmp_path)}")
    torch.nn.init.zeros_(network.network.vision_model.encoder.layers[0].self_attn.out_proj.weight)  # pyright: ignore
    picture = torch.zeros(1, 3, 42, 70)
    spotted = picture.clone()
    spotted[..., 14:28, 56:70] = 1
    moved = (network.maps(spotted)[-1] - network.maps(picture)[-1]).abs().sum((0, 1))
    assert moved.nonzero().tolist() == [[1, 4]]


def test_a_picture_smaller_than_a_transformers_own_is_enlarged_to_it(tmp_path: Path) -> None:
    network, picture = layered_network(f"clip:{clip_of(tmp_path)}"), torch.rand(1, 3, 14, 21)
    (layer, *_) = network.maps(picture)
    larger = F.interpolate(picture, size=(28, 42), mode="bicubic", antialias=True)
    assert torch.equal(layer, network.maps(larger)[0]) and layer.shape[2:] == (2, 3)


@pytest.mark.parametrize("side", [28, 64])
@pytest.mark.parametrize("name", ["mobilenetv2", "random"])
def test_small_pictures_are_judged_at_64_pixels(name: str, side: int) -> None:
    network, picture = feature_network(name), torch.rand(2, 3, side, side)
    assert torch.equal(
        network(picture), network(F.interpolate(picture, size=(64, 64), mode="bilinear", antialias=True))
    )


@pytest.mark.parametrize(("name", "side"), [("mobilenetv2", 200), ("random", 512)])
def test_larger_pictures_are_judged_at_their_own_size(name: str, side: int) -> None:
    board = checkerboard(side) + 0.5
    one, other = feature_network(name)(torch.cat([board, torch.full_like(board, 0.5)]))
    assert (one - other).norm() > 0.5 * other.norm()


@pytest.mark.parametrize(
    ("size", "words"),
    [
        ((28, 28), ""),
        ((64, 64), ""),
        ((224, 224), ""),
        ((512, 512), " on pictures shrunk from 512 to 224 px"),
        ((448, 672), " on pictures shrunk from 448x672 to 224x336 px"),
    ],
)
def test_figures_say_what_was_shrunk(size: tuple[int, int], words: str) -> None:
    assert feature_network("mobilenetv2").label(size) == f"MobileNetV2{words}"
    assert feature_network("random").label(size) == "random convolutions"


def test_figures_say_what_transformers_and_inception_shrink(tmp_path: Path) -> None:
    assert feature_network(f"clip:{clip_of(tmp_path / 'a')}").label((28, 28)) == "CLIP a"
    assert feature_network(f"clip:{tmp_path / 'a'}").label((28, 56)) == "CLIP a on pictures shrunk from 28x56 to 28 px"
    dino = feature_network(f"dinov2:{dino_of(tmp_path / 'b')}")
    assert dino.label((512, 512)) == "DINOv2 b on pictures shrunk from 512 to 224 px"
    torch.jit.save(torch.jit.script(torch.nn.Identity()), str(tmp_path / "c.pt"))
    inception = feature_network(f"inception:{tmp_path / 'c.pt'}")
    assert inception.label((512, 512)) == f"Inception c.pt on pictures shrunk from 512 to {INCEPTION_PX} px"


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Recipe:
    return parse(tiny.recipe_data(tmp_path_factory.mktemp("tiny")))


def test_a_network_that_overlooks_four_pixels_is_named_at_the_start(recipe: Recipe, tmp_path: Path) -> None:
    teacher = Teacher(recipe.teacher)
    assert warnings(recipe, teacher) == []
    coarse = recipe.evaluation.model_copy(update={"features": f"clip:{clip_of(tmp_path, side=7, patch=7)}"})
    (warning,) = warnings(recipe.model_copy(update={"evaluation": coarse}), teacher)
    assert warning.startswith(f"evaluation.features: CLIP {tmp_path.name} on pictures shrunk from 32 to 7 px overlooks")


def test_features_of_larger_pictures_are_kept_apart(recipe: Recipe, cluster: None, tmp_path: Path) -> None:
    large = recipe.model_copy(update={"teacher": recipe.teacher.model_copy(update={"resolution": 128})})
    with open_pool(large, evaluation_prompts(recipe.evaluation), tmp_path) as pool:
        assert pool.key(System("teacher", "ddim", 2, 1.0)).facts["image_size"] == [128, 128]


def trained(recipe: Recipe, method: str, features: str) -> Recipe:
    """The recipe of another method, with the network of its losses."""
    data = {**recipe.model_dump(mode="json", exclude_unset=True), "method": {"name": method}}
    return parse({**data, "training": {**data["training"], "features": features}})


@pytest.mark.skipif(importlib.util.find_spec("lpips") is not None, reason="it is installed")
def test_lpips_without_its_package_is_refused(recipe: Recipe) -> None:
    judged = trained(recipe, "consistency", "lpips")
    preflight(judged, Teacher(judged.teacher), is_offline=True)
    with pytest.raises(BadInput, match=r"training.features: lpips needs the packages .* the extra fewstep\[lpips\]"):
        preflight(judged, Teacher(judged.teacher))


def test_lpips_shows_no_features(recipe: Recipe) -> None:
    adversarial = trained(recipe, "add", "lpips")
    with pytest.raises(BadInput, match=r"training.features: lpips is a distance .* take one of mobilenetv2"):
        preflight(adversarial, Teacher(adversarial.teacher), is_offline=True)
    with pytest.raises(BadInput, match=r"evaluation.features: lpips is a distance"):
        feature_network("lpips")


def test_lpips_is_the_packages_own_at_full_size(tmp_path: Path) -> None:
    lpips, torchvision = pytest.importorskip("lpips"), pytest.importorskip("torchvision")
    torch.manual_seed(0)
    torch.save(torchvision.models.vgg16(weights=None).state_dict(), tmp_path / "vgg16.pth")
    distance = perceptual_distance(f"lpips:{tmp_path / 'vgg16.pth'}")
    assert not list(filter(lambda weight: weight.requires_grad, distance.parameters()))
    trunk = lpips.LPIPS(net="vgg", pnet_rand=True, verbose=False)
    features = torchvision.models.vgg16(weights=None)
    features.load_state_dict(torch.load(tmp_path / "vgg16.pth"))
    for part in (trunk.net.slice1, trunk.net.slice2, trunk.net.slice3, trunk.net.slice4, trunk.net.slice5):
        for number, layer in part.named_children():
            layer.load_state_dict(features.features[int(number)].state_dict())
    one, other = clouds(96)[..., :80], clouds(96)[..., 16:]
    value, gradient = slope(distance, one, other)
    assert value == pytest.approx(trunk(one, other).item(), rel=1e-6) and value > 0
    assert gradient.isfinite().all() and gradient.abs().sum() > 0
    board = checkerboard(256)
    assert slope(distance, board, torch.zeros_like(board))[0] > 1e-3
    assert distance(board[..., :8, :8], torch.zeros(1, 3, 8, 8)).shape == (1,)  # too small for the trunk as it is


def test_a_file_that_is_no_vgg16_is_refused(tmp_path: Path) -> None:
    pytest.importorskip("lpips")
    (tmp_path / "text.pth").write_text("version https://git-lfs.github.com/spec/v1")
    torch.save({"weight": torch.zeros(1)}, tmp_path / "other.pth")
    for name in ("nowhere.pth", "text.pth", "other.pth"):
        with pytest.raises(BadInput, match=f"training.features: lpips:.*{name} cannot be loaded"):
            perceptual_distance(f"lpips:{tmp_path / name}")
