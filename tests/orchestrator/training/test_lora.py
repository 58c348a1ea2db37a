"""Low-rank adapters: one copy of the base for every network, and each network with its own adapters."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import cast

import pytest
import torch
from diffusers import DiffusionPipeline
from torch import Tensor, nn

from fewstep.methods.base import LoRA, Trained
from fewstep.methods.diffusion import Denoiser
from fewstep.orchestrator.engines.rank import Rank
from fewstep.orchestrator.engines.torch import TorchEngine
from fewstep.orchestrator.errors import BadInput
from fewstep.orchestrator.recipe.parsing import parse
from fewstep.orchestrator.students.pipeline import write
from fewstep.orchestrator.students.round_result import read_network, write_result
from fewstep.orchestrator.students.student import student_network
from fewstep.orchestrator.students.warm_start import warm_start
from fewstep.orchestrator.teachers.load import load_student
from fewstep.orchestrator.teachers.teacher import Teacher
from fewstep.orchestrator.training.round_networks import RoundNetworks, full_state
from tests.support import parity, tiny

ONE = Rank(0, 1, torch.device("cpu"))


def storages(modules: Iterable[nn.Module]) -> dict[int, int]:
    """Bytes by address of all that modules hold; what several hold counts once."""
    tensors = [tensor for module in modules for tensor in (*module.parameters(), *module.buffers())]
    found = (tensor.untyped_storage() for tensor in tensors)
    return {storage.data_ptr(): storage.nbytes() for storage in found}


def modules(built: RoundNetworks, *names: str) -> list[nn.Module]:
    return [cast(nn.Module, cast(Denoiser, built.nets[name]).net) for name in names]


@pytest.fixture
def dmd() -> RoundNetworks:
    return parity.networks("dmd-lora", parity.settings(0), ONE, TorchEngine)


def test_teacher_student_and_fake_score_share_one_copy_of_the_base(dmd: RoundNetworks) -> None:
    base = storages(modules(dmd, "teacher"))
    adapters = [full_state(dmd, name) for name in ("student", "fake_score")]
    added = sum(tensor.nbytes for state in adapters for tensor in state.values())
    assert 0 < added < sum(base.values()) / 2
    held = storages(modules(dmd, "teacher", "student", "fake_score"))
    assert sum(held.values()) == sum(base.values()) + added


def test_the_average_of_adapters_shares_the_base_too() -> None:
    built = parity.networks("tcd", parity.settings(0), ONE, TorchEngine)
    base = storages(modules(built, "teacher"))
    added = sum(tensor.nbytes for tensor in full_state(built, "student").values())
    held = storages(modules(built, "teacher", "student", "target"))
    assert sum(held.values()) == sum(base.values()) + 2 * added


def test_an_engine_owns_the_adapters_alone(dmd: RoundNetworks, tmp_path: Path) -> None:
    assert all(".student." in name for name in full_state(dmd, "student"))
    optimized = {id(w) for group in dmd.engines["student"]._optimizer.param_groups for w in group["params"]}  # pyright: ignore[reportAttributeAccessIssue]
    trained = {id(weight) for name, weight in modules(dmd, "student")[0].named_parameters() if ".student." in name}
    assert optimized == trained
    assert not optimized & {id(weight) for weight in modules(dmd, "teacher", "fake_score")[0].parameters()}


def test_calling_one_network_neither_changes_another_nor_what_is_trained(dmd: RoundNetworks) -> None:
    x, t, cond = torch.randn(2, *tiny.LATENT), torch.tensor([900.0, 100.0]), {"prompt": torch.randn(2, 3, tiny.WIDTH)}
    nets = dict(zip(names := ("teacher", "student", "fake_score"), modules(dmd, *names), strict=True))
    with torch.no_grad():
        for number, name in enumerate(names[1:], 1):  # two different sets of adapters
            for key, weight in nets[name].named_parameters():
                if "lora_B" in key:
                    weight.normal_(generator=torch.Generator().manual_seed(number))
        before = {name: [w.requires_grad for w in net.parameters()] for name, net in nets.items()}
        alone = {name: net(x, t, cond) for name, net in nets.items()}
        for name in (*names, *reversed(names)):
            assert torch.equal(nets[name](x, t, cond), alone[name])
    assert {name: [w.requires_grad for w in net.parameters()] for name, net in nets.items()} == before
    assert not any(before["teacher"]) and any(before["student"])
    assert not torch.allclose(alone["student"], alone["fake_score"])
    assert torch.equal(alone["teacher"], cast(nn.Module, parity.teacher().net)(x, t, cond))


def test_adapters_train_in_float32_over_a_base_in_bfloat16() -> None:
    network = cast(nn.Module, parity.teacher().net).to(torch.bfloat16)
    student = student_network(network, Trained(LoRA(2)))
    assert {weight.dtype for weight in student.parameters() if weight.requires_grad} == {torch.float32}
    assert {weight.dtype for weight in student.parameters() if not weight.requires_grad} == {torch.bfloat16}
    x, t, cond = torch.randn(2, *tiny.LATENT), torch.tensor([900.0, 100.0]), {"prompt": torch.randn(2, 3, tiny.WIDTH)}
    assert torch.equal(student(x, t, cond), network(x, t, cond))
    whole = student_network(network, Trained())
    assert {weight.dtype for weight in whole.parameters()} == {torch.float32}


@pytest.mark.parametrize(
    "method",
    [
        {"name": "lcm-lora", "lora_rank": 2},
        {"name": "tcd", "lora_rank": 2},
        {"name": "add", "lora_rank": 2},
        {"name": "dmd", "lora_rank": 2},
        {"name": "guided", "lora_rank": 2},
    ],
    ids=lambda method: method["name"],
)
def test_zero_3_refuses_adapters_with_advice(tmp_path: Path, method: dict[str, object]) -> None:
    data: dict = tiny.recipe_data(tmp_path)
    with pytest.raises(BadInput, match=r"training.zero_stage: 3 cuts .* choose 2, .* or method.lora_rank=0"):
        parse(data | {"method": method, "training": data["training"] | {"zero_stage": 3}})


def trained_lora(tmp_path: Path, *, merged: bool = True, **method: object) -> tuple[Path, Path]:
    """The exported student of adapters that are far from zero, and its teacher's folder."""
    data: dict = tiny.recipe_data(tmp_path)
    recipe = parse(data | {"method": method, "export": {"merged": merged}})
    round_ = recipe.method.build().rounds()[-1]
    torch.manual_seed(0)
    network = student_network(Teacher(recipe.teacher).network, cast(Trained, round_.nets["student"]))
    state: dict[str, Tensor] = {name: w.detach() for name, w in network.named_parameters() if w.requires_grad}
    state = {name: torch.randn_like(w) * 0.3 if "lora_B" in name else w.clone() for name, w in state.items()}
    write_result(tmp_path / "result", {"result": state}, round_, "")
    write(recipe, tmp_path / "result", tmp_path / "student")
    return tmp_path / "student", Path(recipe.teacher.folder)


def picture(pipeline: DiffusionPipeline) -> Tensor:
    pipeline.set_progress_bar_config(disable=True)
    told = {"num_inference_steps": 2, "generator": torch.Generator().manual_seed(0), "output_type": "pt"}
    return pipeline("a cat", guidance_scale=1.0, **told).images  # pyright: ignore[reportCallIssue]


def test_adapters_with_an_alpha_of_their_own_load_into_stock_diffusers_at_that_scale(tmp_path: Path) -> None:
    student, teacher = trained_lora(tmp_path, name="dmd", lora_rank=2, lora_alpha=6.0)
    merged, base = (DiffusionPipeline.from_pretrained(folder) for folder in (student, teacher))
    base.scheduler = merged.scheduler
    plain = picture(base)
    base.load_lora_weights(student / "lora")
    torch.testing.assert_close(picture(base), picture(merged), atol=1e-4, rtol=1e-4)
    assert not torch.allclose(picture(base), plain, atol=1e-2)


def test_adapters_alone_are_sampled_and_gone_on_from_as_the_merged_student_is(tmp_path: Path) -> None:
    method = {"name": "dmd", "lora_rank": 2, "lora_alpha": 6.0}
    places = [tmp_path / "merged", tmp_path / "alone"]
    folders = [trained_lora(place, merged=place.name == "merged", **method) for place in places]
    recipe = parse(tiny.recipe_data(tmp_path) | {"method": method})
    loaded = [load_student(recipe.teacher.at(teacher), student).pipeline for student, teacher in folders]
    assert type(loaded[0].scheduler) is type(loaded[1].scheduler)
    torch.testing.assert_close(picture(loaded[1]), picture(loaded[0]), atol=1e-4, rtol=1e-4)
    states = []
    for student, _ in folders:
        network, spec = Teacher(recipe.teacher).network.with_lora(LoRA(2, 6.0)), Trained(LoRA(2, 6.0))
        told = recipe.training.model_copy(update={"init_from": str(student)})
        warm_start(network, recipe.model_copy(update={"training": told}), spec)
        states.append([weight for _, weight in adapters_of(network)])
    assert all(torch.equal(a, b) for a, b in zip(*states, strict=True))
    assert any(weight.any() for weight in states[1])


def test_adapters_beside_a_guidance_input_train_it_too_and_are_exported_merged_alone(tmp_path: Path) -> None:
    student, _ = trained_lora(tmp_path, name="guided", lora_rank=2)
    assert not (student / "lora").exists()
    unet = DiffusionPipeline.from_pretrained(student).unet
    assert unet.time_embedding.cond_proj.weight.abs().max() > 0


def test_a_later_round_trains_copies_of_the_adapters_of_the_one_before(tmp_path: Path) -> None:
    trained_lora(tmp_path, name="guided", lora_rank=2)
    teacher = Teacher(parse(tiny.recipe_data(tmp_path)).teacher)
    before = read_network(tmp_path / "result", teacher).requires_grad_(False)
    student = student_network(before, Trained(LoRA(2), guidance_input=True))
    pairs = list(zip(before.named_parameters(), student.named_parameters(), strict=True))
    assert all(torch.equal(a, b) for (_, a), (_, b) in pairs)
    assert {name for (name, a), (_, b) in pairs if a is not b} == {name for name, _ in adapters_of(student)}


def adapters_of(network: nn.Module) -> list[tuple[str, nn.Parameter]]:
    return [(name, weight) for name, weight in network.named_parameters() if weight.requires_grad]
