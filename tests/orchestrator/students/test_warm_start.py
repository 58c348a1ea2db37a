"""A student that goes on from another one, or from adapters."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionPipeline
from safetensors.torch import load_file
from torch import Tensor

from fewstep.methods.base import LoRA, Trained
from fewstep.orchestrator.errors import BadInput
from fewstep.orchestrator.families.network import PipelineNetwork
from fewstep.orchestrator.planning.preflight import preflight
from fewstep.orchestrator.recipe.parsing import load, parse
from fewstep.orchestrator.recipe.recipe import Recipe
from fewstep.orchestrator.students.pipeline import write
from fewstep.orchestrator.students.student import student_network
from fewstep.orchestrator.students.warm_start import warm_start
from fewstep.orchestrator.teachers.teacher import Teacher
from tests.support import tiny
from tests.support.students import untrained


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> dict:
    return dict(tiny.recipe_data(tmp_path_factory.mktemp("tiny")))


@pytest.fixture(scope="module")
def teacher(data: dict) -> Teacher:
    return Teacher(parse(data).teacher)


@pytest.fixture(scope="module")
def adapters(teacher: Teacher, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of rank 2 and some effect, as diffusers writes them."""
    network = teacher.network.with_lora(LoRA(2))
    with torch.no_grad():
        for name, weight in network.named_parameters():
            if "lora_B" in name:
                weight.normal_(std=0.1, generator=torch.Generator().manual_seed(len(name)))
    family = Teacher(teacher.spec).family
    family.pipeline.register_modules(unet=network.model)
    folder = tmp_path_factory.mktemp("adapters")
    family.save_lora(folder)
    return folder


@pytest.fixture(scope="module")
def exported(data: dict, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A student with a guidance input, whose first weight was moved."""
    folder = tmp_path_factory.mktemp("exported")
    recipe = parse(data)
    write(recipe, untrained(recipe, folder), folder / "student")
    pipeline = StableDiffusionPipeline.from_pretrained(folder / "student")
    next(pipeline.unet.parameters()).data += 1
    pipeline.save_pretrained(folder / "student")
    return folder / "student"


def started(teacher: Teacher, data: dict, place: Path, **spec: object) -> PipelineNetwork:
    """A student with this specification that goes on from a place."""
    told = Trained(**spec)  # pyright: ignore[reportArgumentType]
    student = student_network(teacher.network, told)
    assert isinstance(student, PipelineNetwork)
    warm_start(student, going_on(data, place), told)
    return student


def going_on(data: dict, place: Path, **others: object) -> Recipe:
    return parse({**data, **others, "training": {**data["training"], "init_from": str(place)}})


@torch.no_grad()
def answer(network: torch.nn.Module, teacher: Teacher) -> Tensor:
    x = torch.randn(2, *tiny.LATENT, generator=torch.Generator().manual_seed(0))
    return network(x, torch.tensor([999.0, 10.0]), teacher.encode(["a cat", "a dog"]))


def with_adapters(teacher: Teacher, folder: Path) -> Tensor:
    """What the teacher answers where stock diffusers has loaded them."""
    loaded = Teacher(teacher.spec)
    loaded.pipeline.load_lora_weights(str(folder))
    return answer(loaded.network, teacher)


def test_adapters_go_on_as_adapters_and_merged_into_a_whole_student(
    teacher: Teacher, data: dict, adapters: Path
) -> None:
    there = with_adapters(teacher, adapters)
    assert not torch.allclose(there, answer(teacher.network, teacher), atol=1e-3)
    low_rank = started(teacher, data, adapters, lora=LoRA(2))
    assert torch.equal(answer(low_rank, teacher), there)
    assert [name for name, weight in low_rank.named_parameters() if weight.requires_grad and "lora" not in name] == []
    merged = started(teacher, data, adapters)
    torch.testing.assert_close(answer(merged, teacher), there, rtol=1e-4, atol=1e-4)
    assert not torch.equal(answer(merged, teacher), answer(teacher.network, teacher))


@pytest.mark.parametrize("kind", [tiny.sigma_teacher, tiny.class_teacher])
def test_adapters_that_no_pipeline_loads_go_on_too(data: dict, tmp_path: Path, kind: Callable[[Path], Path]) -> None:
    folder = str(kind(tmp_path))
    teacher = Teacher(parse({**data, "teacher": {"folder": folder}}).teacher)
    network = teacher.network.with_lora(LoRA(2))
    for name, weight in network.named_parameters():
        weight.data += 0.1 * ("lora_B" in name)
    loaded = Teacher(teacher.spec).family
    loaded.pipeline.register_modules(**{network.component: network.model})
    (tmp_path / "lora").mkdir()
    loaded.save_lora(tmp_path / "lora")
    student = teacher.network.with_lora(LoRA(2))
    warm_start(student, going_on(data, tmp_path / "lora", teacher={"folder": folder}), Trained(lora=LoRA(2)))
    trained = dict(network.named_parameters())
    assert all(torch.equal(weight, trained[name]) for name, weight in student.named_parameters())
    assert any(weight.any() for name, weight in student.named_parameters() if "lora_B" in name)


def test_adapters_with_an_alpha_of_their_own_go_on_at_its_scale(
    teacher: Teacher, data: dict, adapters: Path, tmp_path: Path
) -> None:
    state = load_file(adapters / "pytorch_lora_weights.safetensors")
    layers = {name.removeprefix("unet."): value for name, value in state.items()}
    half = {"r": 2, "lora_alpha": 1, "target_modules": list(teacher.network.lora_targets)}
    StableDiffusionPipeline.save_lora_weights(tmp_path, layers, unet_lora_adapter_metadata=half)
    there = with_adapters(teacher, tmp_path)
    assert not torch.allclose(there, with_adapters(teacher, adapters), atol=1e-3)
    for alpha in (0, 1, 4):  # of the student, 0 being its rank
        student = started(teacher, data, tmp_path, lora=LoRA(2, alpha))
        torch.testing.assert_close(answer(student, teacher), there)


def test_a_whole_student_goes_on_with_or_without_its_guidance_input(
    teacher: Teacher, data: dict, exported: Path
) -> None:
    student = started(teacher, data, exported, guidance_input=True)
    (moved, *_), (stayed, *_) = student.parameters(), teacher.network.parameters()
    assert torch.equal(moved, stayed + 1)
    with pytest.raises(BadInput, match="training.init_from: .* does not fit the student, which differs in .*cond_proj"):
        started(teacher, data, exported)
    plain = Path(teacher.spec.folder)  # which has no guidance input; the student's own stays at zero
    fresh = started(teacher, data, plain, guidance_input=True)
    assert torch.equal(answer(fresh, teacher), answer(teacher.network, teacher))


def test_what_does_not_fit_is_refused(teacher: Teacher, data: dict, adapters: Path, exported: Path) -> None:
    with pytest.raises(BadInput, match="adapters of rank 4 on the same modules do"):
        started(teacher, data, adapters, lora=LoRA(4))
    with pytest.raises(BadInput, match="is a whole pipeline, and lcm trains adapters; give some"):
        started(teacher, data, exported, lora=LoRA(2))
    with pytest.raises(BadInput, match="answers with v_prediction, and this student with flow"):
        started(teacher, data, exported, guidance_input=True, prediction="flow", schedule="flow")
    with pytest.raises(BadInput, match="is neither a student's folder nor adapters of this teacher"):
        started(teacher, data, exported.parent)


def test_a_start_is_checked_before_anything_is_made(
    teacher: Teacher, data: dict, adapters: Path, tmp_path: Path
) -> None:
    preflight(going_on(data, adapters), teacher)
    with pytest.raises(BadInput, match="training.init_from"):
        preflight(going_on(data, adapters, method={"name": "lcm-lora", "lora_rank": 3}), teacher)
    (tmp_path / "recipe.yaml").write_text(json.dumps(data))
    with pytest.raises(BadInput, match="training.init_from: there is nothing at .*/nowhere"):
        load(str(tmp_path / "recipe.yaml"), ["training.init_from=nowhere"])
