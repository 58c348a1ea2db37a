"""The times at which an exported student's network is asked, by the stock pipeline's ordinary call."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from fewstep.methods.base import Round
from fewstep.methods.schedules import RectifiedFlow
from fewstep.orchestrator.recipe.parsing import parse
from fewstep.orchestrator.recipe.recipe import Recipe
from fewstep.orchestrator.sampling.guidance import GuidedDenoiser
from fewstep.orchestrator.sampling.ode import sample_path
from fewstep.orchestrator.sampling.solvers import SOLVERS
from fewstep.orchestrator.students.pipeline import write
from fewstep.orchestrator.students.round_result import read_denoiser
from fewstep.orchestrator.students.student import trained_of
from fewstep.orchestrator.teachers.load import load_student
from fewstep.orchestrator.teachers.teacher import Teacher
from tests.support import tiny
from tests.support.families import KINDS
from tests.support.students import untrained

STEPS = (1, 2, 3, 4, 6, 8)
METHODS: Mapping[str, Mapping[str, object]] = {
    "lcm-lora": {"name": "lcm-lora", "grid": 48},
    "progressive": {"name": "progressive", "teacher_steps": 8},
    "reflow": {"name": "reflow"},
}
CASES = [
    *(("sd3", method) for method in METHODS),
    *(("flux", method) for method in ("lcm-lora", "progressive")),
    ("video", "lcm-lora"),
    *((family, "reflow") for family in ("sd", "unconditional", "points")),
]


def times_shown_to(model: nn.Module, scale: float = 1.0) -> list[float]:
    """A list to which every call of the model adds its time."""
    times: list[float] = []

    def look(_: nn.Module, arguments: tuple, options: Mapping[str, Tensor]) -> None:
        t = options["timestep"] if "timestep" in options else next(value for value in arguments if value.ndim < 2)
        times.append(scale * t.flatten()[0].item())

    model.register_forward_pre_hook(look, with_kwargs=True)
    return times


def recipe_of(family: str, method: Mapping[str, object], folder: Path) -> Recipe:
    data, kind = tiny.recipe_data(folder), KINDS[family]
    place = {"factory": kind.teacher} if isinstance(kind.teacher, str) else {"folder": str(kind.teacher(folder))}
    sections = {name: dict(section) for name, section in data.items() if isinstance(section, dict)}
    sections["teacher"] = {**place, "resolution": kind.resolution if isinstance(kind.resolution, int) else 32}
    sections["trajectories"] |= {"solver": kind.solver, "guidance_scale": 1.0}
    sections["method"] = {**method}
    return parse({**sections, "output": str(folder / "run")})


def result_of(recipe: Recipe, folder: Path) -> tuple[Path, Round]:
    *_, last = recipe.method.build().rounds()
    spec = trained_of(last, last.result)
    return untrained(recipe, folder, guidance_input=False, prediction=spec.prediction, schedule=spec.schedule), last


@pytest.mark.parametrize(("family", "method"), CASES)
def test_the_ordinary_call_asks_at_the_times_that_the_student_was_trained_at(
    family: str, method: str, tmp_path: Path
) -> None:
    recipe = recipe_of(family, METHODS[method], tmp_path)
    teacher, (result, last) = Teacher(recipe.teacher), result_of(recipe, tmp_path)
    write(recipe, result, tmp_path / "student")
    trained = read_denoiser(result, teacher, last, "result")
    levels = teacher.schedule if family in ("sd3", "flux", "video") else trained.schedule
    student = load_student(recipe.teacher, tmp_path / "student")
    times = times_shown_to(student.network.model, scale=1000 if family == "flux" else 1)
    condition = (KINDS[family].prompts or ("",))[0]
    for steps in STEPS:
        times.clear()
        student.pipeline(**student.call_arguments([condition], "", steps, 1.0))
        even = trained.schedule.network_time(levels.at(torch.arange(steps, 0, -1) / steps))
        assert times == pytest.approx(even.tolist(), abs=1e-4), steps


@pytest.mark.parametrize(("family", "shift"), [("sd", 1.0), ("sd3", 3.0)])
def test_pairs_of_a_reflowed_student_are_sampled_at_those_times_too(family: str, shift: float, tmp_path: Path) -> None:
    recipe = recipe_of(family, {"name": "reflow", "num_reflows": 2}, tmp_path)
    result, last = result_of(recipe, tmp_path)
    write(recipe, result, tmp_path / "student")
    teacher, solver = Teacher(recipe.teacher.at(tmp_path / "student")), last.sources["pairs"].solver
    guided = GuidedDenoiser(teacher.denoiser(), teacher.encode(["a cat"]), teacher.encode([""]), torch.ones(1))
    times = times_shown_to(teacher.network.model)
    for steps in STEPS:
        times.clear()
        _, stored = sample_path(SOLVERS[solver], teacher.scheduler, guided, torch.randn(1, *tiny.LATENT), steps)
        even = RectifiedFlow(shift).at(torch.arange(steps, -1, -1) / steps).tolist()
        assert times == pytest.approx([1000 * t for t in even[:-1]], abs=1e-4)
        assert stored.tolist() == pytest.approx(even, abs=1e-7)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_flux_is_shown_times_as_its_pipeline_rounds_them(dtype: torch.dtype, tmp_path: Path) -> None:
    teacher = Teacher(recipe_of("flux", METHODS["progressive"], tmp_path).teacher)
    teacher.pipeline.to(dtype)
    times = times_shown_to(teacher.network.model, scale=1000)
    teacher.pipeline("a cat", num_inference_steps=8, height=32, width=32, guidance_scale=1.0)
    by_pipeline = list(times)
    times.clear()
    t, cond = teacher.schedule.network_time(teacher.schedule.at(torch.arange(8, 0, -1) / 8)), teacher.encode(["a cat"])
    for time in t:
        teacher.network(torch.zeros(1, *tiny.LATENT), time[None], cond)
    assert times == pytest.approx(by_pipeline, abs=1e-4)
