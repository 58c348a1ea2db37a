"""FLUX: latents in patches, the guidance scale as an input, a shift by the picture's size."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from diffusers import FluxPipeline

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
    folder = tmp_path_factory.mktemp("flux")
    data = tiny.recipe_data(folder)
    sections = {name: dict(section) for name, section in data.items() if isinstance(section, dict)}
    sections["teacher"] = {"folder": str(tiny.flux_teacher(folder)), "resolution": 32}
    sections["trajectories"] |= {"solver": "flow-match-euler"}
    sections["evaluation"] |= {"solvers": ["flow-match-euler"]}
    return parse({**sections, "output": str(folder / "run")})


@pytest.mark.parametrize("guidance_scale", [1.0, 3.5])
def test_the_pipeline_itself_makes_the_same_pictures(recipe: Recipe, guidance_scale: float) -> None:
    teacher = Teacher(recipe.teacher)
    noise = torch.randn(2, *tiny.LATENT, generator=torch.Generator().manual_seed(0))
    states, _, evaluations = teacher_path(teacher, "flow-match-euler", PROMPTS, guidance_scale, noise)
    assert evaluations == 4 * 2  # one a step, guided or not
    dataset_kind = FluxPipeline.from_pretrained(recipe.teacher.folder)
    dataset_kind.set_progress_bar_config(disable=True)
    made = dataset_kind(
        PROMPTS,
        height=32,
        width=32,
        num_inference_steps=4,
        guidance_scale=guidance_scale,
        latents=FluxPipeline._pack_latents(noise, 2, 4, 8, 8),
        output_type="pt",
    ).images
    torch.testing.assert_close(teacher.decode(states[:, -1]), made, atol=1e-4, rtol=0)


def test_guidance_is_an_input_that_matters(recipe: Recipe) -> None:
    teacher = Teacher(recipe.teacher)
    x, t = torch.randn(2, *tiny.LATENT), torch.tensor([900.0, 100.0])
    cond = teacher.encode(PROMPTS)
    told = [teacher.network(x, t, {**cond, "guidance_scale": torch.full((2,), w)}) for w in (1.0, 8.0)]
    assert not torch.allclose(*told)
    assert torch.equal(told[0], teacher.network(x, t, cond))
    assert torch.equal(
        told[1], teacher.network.with_guidance_input()(x, t, {**cond, "guidance_scale": torch.full((2,), 8.0)})
    )


@pytest.mark.parametrize(
    "method",
    [{"name": "lcm", "grid": 48}, {"name": "lcm-lora", "lora_rank": 2, "grid": 48}],
    ids=["lcm", "lcm-lora"],
)
def test_an_untrained_students_pipeline_makes_the_teachers_pictures(
    recipe: Recipe, method: dict[str, object], tmp_path: Path
) -> None:
    recipe = parse({**recipe.resolved(), "method": method})
    preflight(recipe, Teacher(recipe.teacher))
    write(recipe, untrained(recipe, tmp_path, guidance_input=method["name"] == "lcm"), tmp_path / "student")
    made = evaluator(recipe, tmp_path / "student", PROMPTS)
    student, teacher = (
        made.sample(System(name, sampler, 1, 1.0), range(2))
        for name, sampler in (("student", "its own"), ("teacher", "flow-match-euler"))
    )
    torch.testing.assert_close(student, teacher, atol=1e-4, rtol=0)


def test_adapters_load_into_the_stock_pipeline(recipe: Recipe, tmp_path: Path) -> None:
    assert stock_with_adapters(recipe, tmp_path).get_active_adapters()


def test_a_size_that_does_not_fall_into_patches_is_refused(recipe: Recipe) -> None:
    with pytest.raises(BadInput, match="teacher.resolution: 35 is not a multiple of 8; try 32"):
        Teacher(TeacherSpec(folder=recipe.teacher.folder, resolution=35))


def test_a_student_that_is_told_a_guidance_scale_generates_pairs_at_none_but_its_own(recipe: Recipe) -> None:
    def check(**method: object) -> None:
        told = parse({**recipe.resolved(), "method": {"name": "instaflow", "num_reflows": 2, **method}})
        preflight(told, Teacher(told.teacher))

    for scales in ({}, {"guidance_scale": 2.5, "flow_guidance_scale": 2.5}):
        with pytest.raises(BadInput, match=r"^method.flow_guidance_scale: \d.5 is told to a student .* set it to 1$"):
            check(**scales)
    check(flow_guidance_scale=1.0)
    reflow = {"name": "reflow", "num_reflows": 2}
    guided = {**recipe.resolved()["trajectories"], "guidance_scale": 3.5}  # pyright: ignore[reportGeneralTypeIssues]
    preflight(parse({**recipe.resolved(), "method": reflow, "trajectories": guided}), Teacher(recipe.teacher))


@pytest.mark.parametrize("name", ["lcm", "lcm-lora"])
def test_a_grid_without_the_times_that_the_student_is_sampled_at_is_refused(recipe: Recipe, name: str) -> None:
    for steps in (3, 4, 6, 8):
        method = {"name": name, "student_steps": steps}
        with pytest.raises(BadInput, match=f"^method.grid: 50 even times leave out some of the {steps} .* like 48$"):
            preflight(parse({**recipe.resolved(), "method": method}), Teacher(recipe.teacher))
        preflight(parse({**recipe.resolved(), "method": {**method, "grid": 48}}), Teacher(recipe.teacher))


@pytest.mark.parametrize(("solver", "fits"), [("flow-match-euler", True), ("heun", True), ("dpm++", False)])
def test_stored_points_of_straight_paths_are_at_the_times_of_sampling(recipe: Recipe, solver: str, fits: bool) -> None:
    method = {"name": "lcm", "teacher_step": "stored", "skip": 250, "grid": 4}
    stored = {**recipe.resolved()["trajectories"], "solver": solver}  # pyright: ignore[reportGeneralTypeIssues]
    told = parse({**recipe.resolved(), "method": method, "trajectories": stored})
    if fits:
        return preflight(told, Teacher(told.teacher))
    others = "flow-match-euler, heun, rk45$"  # diffusers' multistep solvers begin a thousandth after pure noise
    with pytest.raises(BadInput, match=f"^trajectories.solver: {re.escape(solver)} does not stop .* one of {others}"):
        preflight(told, Teacher(told.teacher))
