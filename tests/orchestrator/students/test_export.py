from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Literal

import pytest
import torch
from diffusers import DDPMScheduler, FlowMatchEulerDiscreteScheduler, LCMScheduler, StableDiffusionPipeline
from torch import Tensor

from fewstep.methods.base import Sampler
from fewstep.methods.diffusion import solve, step
from fewstep.methods.schedules import RectifiedFlow
from fewstep.orchestrator.errors import BadInput
from fewstep.orchestrator.families.unet import UNetNetwork
from fewstep.orchestrator.pipelines.overshooting import OvershootingScheduler
from fewstep.orchestrator.recipe.parsing import parse
from fewstep.orchestrator.recipe.recipe import Recipe
from fewstep.orchestrator.sampling.schedules import schedule_of
from fewstep.orchestrator.sampling.solvers import Scheduler
from fewstep.orchestrator.students.export import export_student
from fewstep.orchestrator.students.pipeline import write
from fewstep.orchestrator.students.schedulers import FLOW_TARGETS, TARGETS, TOLD_FLOW_TARGETS, scheduler_for
from fewstep.orchestrator.teachers.load import load
from fewstep.orchestrator.teachers.teacher import Teacher
from tests.support import tiny
from tests.support.renoise import renoise
from tests.support.strangers import run_elsewhere
from tests.support.students import untrained

STEPS = (1, 2, 3, 4, 6, 8)
Kind = Literal["ddim", "renoising", "euler"]


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Recipe:
    return parse(tiny.recipe_data(tmp_path_factory.mktemp("tiny")))


@pytest.fixture(scope="module")
def student(recipe: Recipe, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("export")
    write(recipe, untrained(recipe, folder), folder / "student")
    return folder / "student"


def config(zero_snr: bool, prediction: str) -> Mapping[str, object]:
    return {**tiny.scheduler().config, "rescale_betas_zero_snr": zero_snr, "prediction_type": prediction}


@pytest.mark.parametrize("ours", ["fewstep.methods", "ray"])
def test_code_of_ours_that_comes_to_be_loaded_is_seen(ours: str, tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="came to be loaded"):
        run_elsewhere(f"import {ours}", cwd=tmp_path)


def test_a_fresh_process_without_our_code_samples_the_student(student: Path, tmp_path: Path) -> None:
    code = f"""
import torch
from diffusers import DiffusionPipeline
pipeline = DiffusionPipeline.from_pretrained({str(student)!r})
image = pipeline("a cat", num_inference_steps=4, guidance_scale=3.0, output_type="pt").images
assert type(pipeline.scheduler).__name__ == "LCMScheduler", pipeline.scheduler
assert pipeline.scheduler.timesteps.tolist() == [999, 759, 499, 259], pipeline.scheduler.timesteps
assert image.shape == (1, 3, 32, 32) and torch.isfinite(image).all()
"""
    run_elsewhere(code, cwd=tmp_path)


def test_an_untrained_student_answers_as_the_teacher_at_every_guidance(recipe: Recipe, student: Path) -> None:
    teacher = Teacher(recipe.teacher)
    exported = UNetNetwork(StableDiffusionPipeline.from_pretrained(student).unet)
    x = torch.randn(3, *tiny.LATENT, generator=torch.Generator().manual_seed(0))
    t, cond = torch.tensor([999.0, 500.0, 0.0]), teacher.encode(["a cat", "a dog", ""])
    with torch.no_grad():
        guided = exported(x, t, {**cond, "guidance_scale": torch.tensor([1.0, 3.0, 8.0])})
        assert torch.equal(guided, teacher.network(x, t, cond))


def test_the_folder_holds_safetensors_alone(student: Path) -> None:
    weights = {file.suffix for file in student.rglob("*") if file.stat().st_size > 20_000}
    assert weights == {".safetensors"}
    for file in student.rglob("*"):
        start = file.read_bytes()[:2] if file.is_file() else b""
        assert start[:1] != b"\x80" and start != b"PK", f"{file} is a pickle, or an archive that may hold one"


def test_a_failed_export_leaves_the_student_that_was_there(recipe: Recipe, student: Path, tmp_path: Path) -> None:
    before = {file: file.read_bytes() for file in student.rglob("*.json")}
    result = untrained(recipe, tmp_path)
    (result / "result.safetensors").write_bytes(b"truncated")
    with pytest.raises(Exception, match="header"):
        write(recipe, result, student)
    assert {file: file.read_bytes() for file in student.rglob("*.json")} == before
    assert [child.name for child in student.parent.iterdir() if child.name.startswith(".")] == []


def test_export_runs_on_the_cluster(recipe: Recipe, cluster: None, tmp_path: Path) -> None:
    export_student(recipe, untrained(recipe, tmp_path), tmp_path / "student")
    assert (tmp_path / "student" / "model_index.json").exists()


def cells() -> list[tuple[str, str, str, bool]]:
    """(kind, schedule, prediction, zero-SNR teacher) of the whole table."""
    return [
        (kind, schedule, prediction, zero_snr)
        for kind, target in TARGETS.items()
        for schedule in target.schedules
        for prediction in target.predictions
        for zero_snr in (False, True)
    ]


@pytest.mark.parametrize(("kind", "schedule", "prediction", "zero_snr"), cells())
def test_every_cell_of_the_table_samples_finitely_from_the_last_time_or_is_refused(
    kind: str, schedule: str, prediction: str, zero_snr: bool
) -> None:
    teacher = config(zero_snr, "v_prediction" if prediction == "flow" else prediction)
    if prediction == "epsilon" and zero_snr:
        with pytest.raises(BadInput, match="zero terminal SNR"):
            scheduler_for(Sampler(kind), schedule, prediction, teacher)  # pyright: ignore[reportArgumentType]
        return
    for steps in STEPS:
        scheduler = scheduler_for(Sampler(kind), schedule, prediction, teacher)  # pyright: ignore[reportArgumentType]
        scheduler.set_timesteps(steps)
        assert scheduler.timesteps[0] == (1000 if prediction == "flow" else 999)
        assert len(scheduler.timesteps) == steps
        x = torch.randn(2, 3, generator=torch.Generator().manual_seed(0))
        for t in scheduler.timesteps:
            x = scheduler.step(0.1 * x, t, scheduler.scale_model_input(x, t)).prev_sample
        assert torch.isfinite(x).all()


FLOW_CELLS = [
    (kind, schedule, is_told)
    for is_told, targets in ((False, FLOW_TARGETS), (True, TOLD_FLOW_TARGETS))
    for kind, target in targets.items()
    for schedule in target.schedules
]


def straight(scheduler: Scheduler, x0: Tensor, noise: Tensor) -> Iterator[tuple[float, Tensor]]:
    """The times that a network is shown and the states there, where it knows x_0; time 0 is the end."""
    x = noise
    for t in scheduler.timesteps:
        yield t.item() / 1000, x
        x = scheduler.step((x - x0) / (t / 1000), t, x).prev_sample
    yield 0.0, x


@pytest.mark.parametrize(("kind", "schedule", "is_told"), FLOW_CELLS)
def test_students_of_flow_matching_teachers_take_even_steps_that_are_shifted_once(
    kind: Kind, schedule: str, is_told: bool
) -> None:
    own = FlowMatchEulerDiscreteScheduler(shift=3.0)
    teacher = {**own.config, "prediction_type": "flow_prediction", "use_flow_sigmas": True, "flow_shift": 3.0}
    noise = torch.randn(100, 100, generator=torch.Generator().manual_seed(0))
    x0 = torch.full_like(noise, 2.0)
    for steps in STEPS:
        scheduler = scheduler_for(Sampler(kind), schedule, "flow", teacher, is_told_times=is_told)
        told = {"sigmas": [1 - step / steps for step in range(steps)]} if is_told else {"num_inference_steps": steps}
        scheduler.set_timesteps(**told)
        even = RectifiedFlow(3.0).at(torch.arange(steps, -1, -1) / steps)
        times, states = zip(*straight(scheduler, x0, noise), strict=True)
        assert times == pytest.approx(even.tolist(), abs=1e-7)
        for t, x in zip(times, states, strict=True):
            if kind == "renoising":  # in noise of its own
                assert ((x - (1 - t) * x0).square().mean().sqrt() - t).abs() < 0.03
            else:
                torch.testing.assert_close(x, (1 - t) * x0 + t * noise)


def test_a_pipeline_reads_nothing_in_a_flow_students_scheduler_that_would_move_its_times() -> None:
    own = FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True, use_karras_sigmas=True)
    teacher = {**own.config, "shift": 3.0, "use_flow_sigmas": True}
    for is_told in (False, True):
        scheduler = scheduler_for(Sampler("renoising"), "", "flow", teacher, is_told_times=is_told)
        flags = ("use_flow_sigmas", "use_dynamic_shifting", "use_karras_sigmas")
        assert scheduler.config["shift"] == 3.0 and not any(scheduler.config.get(flag) for flag in flags)


def test_a_flow_matching_teacher_has_no_scheduler_that_aims_beyond() -> None:
    for kind in set(TARGETS) - set(FLOW_TARGETS):
        with pytest.raises(BadInput, match=f"no scheduler for {kind} sampling of a flow-matching teacher"):
            scheduler_for(Sampler(kind), "", "flow", FlowMatchEulerDiscreteScheduler().config)  # pyright: ignore


@pytest.mark.parametrize("steps", STEPS)
def test_euler_students_take_even_straight_steps_from_pure_noise(steps: int) -> None:
    scheduler = scheduler_for(Sampler("euler"), "flow", "flow", config(False, "epsilon"))
    scheduler.set_timesteps(steps)
    x0, noise = torch.full((1, 3), 2.0), torch.ones(1, 3)
    times, states = zip(*straight(scheduler, x0, noise), strict=True)
    assert times == pytest.approx([1 - step / steps for step in range(steps + 1)], abs=1e-7)
    for t, x in zip(times, states, strict=True):
        torch.testing.assert_close(x, (1 - t) * x0 + t * noise)


def test_overshooting_goes_two_steps_and_returns_one_in_noise() -> None:
    scheduler = scheduler_for(Sampler("overshooting"), "", "sample", config(True, "sample"))
    levels = schedule_of(config(True, "sample"))
    scheduler.set_timesteps(4)
    x0, x = torch.full((2, 3), 2.0), torch.randn(2, 3, generator=torch.Generator().manual_seed(0))
    times = [*scheduler.timesteps, -1, -1]
    for place, t in enumerate(times[:4]):
        told = {"generator": torch.Generator().manual_seed(place)}
        found = scheduler.step(x0, t, x, **told).prev_sample  # pyright: ignore[reportCallIssue]
        now, near, far = (torch.tensor([float(time)] * 2) for time in times[place : place + 3])
        there = step(levels, solve(levels, "sample", x, now, x0), far)
        noise = torch.randn(2, 3, generator=torch.Generator().manual_seed(place))
        x = there if place == 3 else renoise(levels, there, far, near, noise)
        torch.testing.assert_close(found, x, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(x, x0)


def test_a_student_whose_scheduler_diffusers_lacks_brings_it(tmp_path: Path) -> None:
    told = tiny.recipe_data(tmp_path)
    recipe, folder = parse({**told, "method": {"name": "guided", "stochastic": True}}), tmp_path / "student"
    write(recipe, untrained(recipe, tmp_path), folder)
    code = f"""
import torch
from diffusers import DiffusionPipeline
pipeline = DiffusionPipeline.from_pretrained({str(folder)!r}, trust_remote_code=True)
image = pipeline("a cat", num_inference_steps=4, guidance_scale=3.0, output_type="pt").images
assert type(pipeline.scheduler).__name__ == "OvershootingScheduler", pipeline.scheduler
assert torch.isfinite(image).all()
"""
    run_elsewhere(code, cwd=tmp_path)
    (folder / "scheduler" / "overshooting.py").write_text("raise AssertionError('a folder is data')\n")
    assert type(load(recipe.teacher.at(folder)).pipeline.scheduler) is OvershootingScheduler


def test_a_student_that_starts_early_is_sampled_there_by_an_ordinary_call_in_half_precision(tmp_path: Path) -> None:
    data = {**tiny.recipe_data(tmp_path), "teacher": {"folder": str(tiny.epsilon_teacher(tmp_path))}}
    for start in (0, 399):
        recipe = parse({**data, "method": {"name": "dmd", "start_time": start}})
        write(recipe, untrained(recipe, tmp_path / f"run-{start}"), tmp_path / f"student-{start}")
    code = f"""
import torch
from diffusers import DDIMScheduler, StableDiffusionPipeline
noise = torch.randn(4, *{tiny.LATENT}, generator=torch.Generator().manual_seed(0))
def sample(start, dtype):
    pipeline = StableDiffusionPipeline.from_pretrained({str(tmp_path)!r} + f"/student-{{start}}", torch_dtype=dtype)
    call = {{"num_inference_steps": 1, "guidance_scale": 1.0, "output_type": "latent"}}
    x0 = pipeline(["a cat"] * 4, latents=noise.to(dtype), **call).images.float()
    assert pipeline.scheduler.timesteps.tolist() == [start or 999], pipeline.scheduler.timesteps
    return pipeline, x0
def error(start):
    (_, exact), (_, rounded) = (sample(start, dtype) for dtype in (torch.float32, torch.bfloat16))
    return (exact - rounded).square().mean().sqrt()
assert error(399) < 0.02 < error(0), (error(399), error(0))
pipeline, x0 = sample(399, torch.float32)
alpha = DDIMScheduler().alphas_cumprod[399].sqrt()
prompt, _ = pipeline.encode_prompt(["a cat"] * 4, "cpu", 1, False)
eps = pipeline.unet(noise, 399, prompt).sample
torch.testing.assert_close(x0, (noise - (1 - alpha**2).sqrt() * eps) / alpha, rtol=1e-4, atol=1e-4)
"""
    run_elsewhere(code, cwd=tmp_path)


def test_a_grid_that_misses_the_last_time_is_refused() -> None:
    with pytest.raises(BadInput, match="30 does not divide"):
        scheduler_for(Sampler("renoising", grid=30), "", "v_prediction", config(True, "v_prediction"))


def test_a_student_that_no_scheduler_samples_is_refused() -> None:
    with pytest.raises(BadInput, match="cannot sample"):
        scheduler_for(Sampler("euler"), "", "v_prediction", config(True, "v_prediction"))


def test_the_noise_levels_are_the_teachers() -> None:
    teacher = config(True, "v_prediction")
    exported = scheduler_for(Sampler("renoising"), "", "v_prediction", teacher)
    assert isinstance(exported, LCMScheduler)
    own = DDPMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", rescale_betas_zero_snr=True)
    assert torch.equal(exported.alphas_cumprod, own.alphas_cumprod)
