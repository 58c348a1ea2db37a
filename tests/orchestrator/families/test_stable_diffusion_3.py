"""Stable Diffusion 3: a transformer that answers with the velocity of straight paths, visited with a shift."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusion3Pipeline

from fewstep.orchestrator.errors import BadInput
from fewstep.orchestrator.evaluation.system import System
from fewstep.orchestrator.planning.preflight import preflight
from fewstep.orchestrator.recipe.parsing import parse
from fewstep.orchestrator.recipe.recipe import Recipe
from fewstep.orchestrator.recipe.teacher import TeacherSpec
from fewstep.orchestrator.students.pipeline import write
from fewstep.orchestrator.teachers.teacher import Teacher
from tests.support import tiny
from tests.support.students import evaluator, stock_with_adapters, teacher_path, untrained

PROMPTS = ["a cat", "a red dog"]


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Recipe:
    folder = tmp_path_factory.mktemp("sd3")
    data = tiny.recipe_data(folder)
    trajectories = {**dict(data["trajectories"]), "solver": "flow-match-euler"}  # pyright: ignore
    evaluation = {**dict(data["evaluation"]), "solvers": ["flow-match-euler"]}  # pyright: ignore
    told = {"teacher": {"folder": str(tiny.sd3_teacher(folder))}, "trajectories": trajectories}
    return parse({**data, **told, "evaluation": evaluation})


def with_method(recipe: Recipe, **method: object) -> Recipe:
    return parse({**recipe.resolved(), "method": method})


@pytest.mark.parametrize("guidance_scale", [1.0, 5.0])
def test_the_pipeline_itself_makes_the_same_pictures(recipe: Recipe, guidance_scale: float) -> None:
    teacher = Teacher(recipe.teacher)
    noise = torch.randn(2, *tiny.LATENT, generator=torch.Generator().manual_seed(0))
    states, times, _ = teacher_path(teacher, "flow-match-euler", PROMPTS, guidance_scale, noise)
    assert times.tolist() == pytest.approx([1, 0.9, 0.75, 0.5, 0])  # 3 u / (1 + 2 u)
    dataset_kind = StableDiffusion3Pipeline.from_pretrained(recipe.teacher.folder)
    dataset_kind.set_progress_bar_config(disable=True)
    sigmas = [1.0, 0.75, 0.5, 0.25]
    made = dataset_kind(
        PROMPTS,
        negative_prompt=["", ""],
        sigmas=sigmas,
        guidance_scale=guidance_scale,
        latents=noise.clone(),
        output_type="pt",
    ).images
    torch.testing.assert_close(teacher.decode(states[:, -1]), made, atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    "method",
    [{"name": "lcm-lora", "lora_rank": 2, "grid": 48}, {"name": "dmd"}, {"name": "progressive", "teacher_steps": 8}],
    ids=lambda method: method["name"],
)
@pytest.mark.parametrize("steps", [1, 4])
def test_an_untrained_students_pipeline_makes_the_teachers_pictures(
    recipe: Recipe, method: dict[str, object], steps: int, tmp_path: Path
) -> None:
    recipe = with_method(recipe, **method)
    preflight(recipe, Teacher(recipe.teacher))
    write(recipe, untrained(recipe, tmp_path, guidance_input=False), tmp_path / "student")
    made = evaluator(recipe, tmp_path / "student", PROMPTS)
    renoises = method["name"] != "progressive"
    student = made.sample(System("student", "its own", steps, 1.0), range(2))
    assert torch.equal(student, made.sample(System("student", "its own", steps, 1.0), range(2)))
    teacher = made.sample(System("teacher", "flow-match-euler", steps, 1.0), range(2))
    if steps == 1 or not renoises:
        torch.testing.assert_close(student, teacher, atol=1e-4, rtol=0)
    else:
        assert (student - teacher).abs().max() > 1e-2


def test_adapters_load_into_the_stock_pipeline(recipe: Recipe, tmp_path: Path) -> None:
    assert stock_with_adapters(recipe, tmp_path).get_active_adapters()


@pytest.mark.parametrize(
    ("method", "says"),
    [
        ({"name": "lcm"}, "cannot take the guidance scale as an input"),
        ({"name": "tcd"}, "no scheduler for strategic sampling"),
        (
            {"name": "dmd", "adversarial_weight": 0.1},
            "a SD3Transformer2DModel shows nothing of its middle",
        ),
    ],
)
def test_what_cannot_be_is_said_before_anything_is_sampled(
    recipe: Recipe, method: dict[str, object], says: str
) -> None:
    with pytest.raises(BadInput, match=says):
        preflight(with_method(recipe, **method), Teacher(recipe.teacher))


@pytest.mark.parametrize(("section", "field"), [("trajectories", "solver"), ("evaluation", "solvers")])
def test_a_solver_that_knows_no_straight_paths_is_refused(recipe: Recipe, section: str, field: str) -> None:
    resolved = recipe.resolved()
    told = parse({**resolved, section: {**resolved[section], field: ["ddim"] if field == "solvers" else "ddim"}})  # pyright: ignore
    with pytest.raises(BadInput, match=f"{section}.{field}: ddim cannot sample a flow teacher; choose one of"):
        preflight(told, Teacher(told.teacher))


def test_a_shift_by_the_pictures_size_becomes_that_of_this_size(recipe: Recipe, tmp_path: Path) -> None:
    pipeline = StableDiffusion3Pipeline.from_pretrained(recipe.teacher.folder)
    pipeline.save_pretrained(tmp_path)
    file = tmp_path / "scheduler" / "scheduler_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"use_dynamic_shifting": True}))
    shifts = [
        Teacher(TeacherSpec(folder=str(tmp_path), resolution=pixels)).scheduler["shift"] for pixels in (0, 128, 512)
    ]
    # mu is 0.5 at 256 tokens, 1.15 at 4096, and linear between them; 32, 128 and 512 pixels are 16, 256 and 4096.
    slope = (1.15 - 0.5) / (4096 - 256)
    assert shifts == pytest.approx([math.exp(0.5 - 240 * slope), math.exp(0.5), math.exp(1.15)])
    one_area = TeacherSpec(folder=str(tmp_path), resolution=((128, 128), (64, 256)))
    assert Teacher(one_area).scheduler["shift"] == pytest.approx(math.exp(0.5))
    with pytest.raises(BadInput, match="teacher.resolution: .* all sizes need one area"):
        _ = Teacher(one_area.model_copy(update={"resolution": ((128, 128), (64, 128))})).scheduler
