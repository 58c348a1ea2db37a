"""Stable Diffusion XL: two text encoders, the picture's size, and an empty prompt of zeros."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionXLPipeline

from orchestrator.export import write
from orchestrator.judge import System
from orchestrator.recipe import Recipe, parse
from orchestrator.solvers import SOLVERS
from orchestrator.teacher import Teacher
from tests import tiny
from tests.orchestrator.students import judge, stock_with_adapters, teacher_path, untrained

PROMPTS = ["a cat", "a red dog"]


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Recipe:
    folder = tmp_path_factory.mktemp("xl")
    return parse({**tiny.recipe_data(folder), "teacher": {"folder": str(tiny.xl_teacher(folder))}})


@pytest.mark.parametrize("guidance_scale", [1.0, 5.0])
def test_the_pipeline_itself_makes_the_same_pictures(recipe: Recipe, guidance_scale: float) -> None:
    teacher = Teacher(recipe.teacher)
    noise = torch.randn(2, *tiny.LATENT, generator=torch.Generator().manual_seed(0))
    states, _, _ = teacher_path(teacher, "dpm++", PROMPTS, guidance_scale, noise)
    stock = StableDiffusionXLPipeline.from_pretrained(recipe.teacher.folder)
    stock.scheduler = SOLVERS["dpm++"].build(teacher.scheduler, 4)
    stock.set_progress_bar_config(disable=True)
    made = stock(
        PROMPTS, num_inference_steps=4, guidance_scale=guidance_scale, latents=noise.clone(), output_type="pt"
    ).images
    torch.testing.assert_close(teacher.decode(states[:, -1]), made, atol=1e-4, rtol=0)


def test_the_empty_prompt_is_zeros_where_the_pipeline_says_so(recipe: Recipe) -> None:
    empty = Teacher(recipe.teacher).encode(["", "a cat"])
    assert not empty["prompt"][0].any() and not empty["pooled"][0].any()
    assert empty["prompt"][1].any() and empty["pooled"][1].any()
    assert empty["size"].tolist() == [[32, 32, 0, 0, 32, 32]] * 2


@pytest.mark.parametrize("method", [{"name": "lcm-lora", "lora_rank": 2}, {"name": "dmd"}, {"name": "lcm"}])
def test_an_untrained_students_pipeline_makes_the_teachers_pictures(
    recipe: Recipe, method: dict[str, object], tmp_path: Path
) -> None:
    recipe = recipe.model_copy(update={"method": parse({**recipe.resolved(), "method": method}).method})
    has_input = method["name"] == "lcm"
    write(recipe, untrained(recipe, tmp_path, guidance_input=has_input), tmp_path / "student")
    made = judge(recipe, tmp_path / "student", PROMPTS)
    student, teacher = (
        made.sample(System(name, sampler, 1, 1.0), range(2))
        for name, sampler in (("student", "LCMScheduler"), ("teacher", "ddim"))
    )
    torch.testing.assert_close(student, teacher, atol=1e-4, rtol=0)


def test_adapters_load_into_the_stock_pipeline(recipe: Recipe, tmp_path: Path) -> None:
    assert stock_with_adapters(recipe, tmp_path).get_active_adapters()
