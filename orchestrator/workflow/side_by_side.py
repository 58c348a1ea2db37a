"""Paints a student beside its teacher, from the same noise and prompts. In this process, without Ray."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import yaml
from diffusers.pipelines.stable_diffusion import StableDiffusionSafetyChecker
from torch import Tensor
from transformers import CLIPImageProcessor

from fewstep.orchestrator.errors import BadInput
from fewstep.orchestrator.evaluation.evaluator import Evaluator
from fewstep.orchestrator.evaluation.results import label
from fewstep.orchestrator.evaluation.system import EvaluationSetting, System
from fewstep.orchestrator.families.family import Family
from fewstep.orchestrator.observability.console import say
from fewstep.orchestrator.observability.image_grid import Pixels, grid
from fewstep.orchestrator.recipe.parsing import parse
from fewstep.orchestrator.recipe.recipe import Recipe
from fewstep.orchestrator.recipe.teacher import TeacherSpec
from fewstep.orchestrator.reports.model_card import RECIPE
from fewstep.orchestrator.students.inference import fixed_guidance, inference_arguments
from fewstep.orchestrator.teachers.folders import holds_pipeline


@dataclass(frozen=True)
class Request:
    """What somebody wants to see."""

    prompts: Sequence[str]
    steps: int = 0  # 0 is what the student was made for
    guidance_scale: float = 0.0  # of both; 0 is each one's own by the recipe
    seed: int = 0
    teacher: str = ""  # a folder; "" is the recipe's


def find_student(path: str) -> tuple[Path, Recipe]:
    """An exported folder, or that of a run's output, and the recipe in it. Raises BadInput where there is none."""
    folder = Path(path)
    if (folder / "student" / RECIPE).is_file():
        folder = folder / "student"
    if not (folder / RECIPE).is_file():
        raise BadInput(f"student: {path} is no exported student, it has no {RECIPE}; `fewstep export` makes one")
    return folder.resolve(), parse(yaml.safe_load((folder / RECIPE).read_text()))


def sample(path: str, request: Request, out: Path) -> dict[str, str | int | float]:
    """Write a PNG: teacher at many steps, teacher and student at few. Raises BadInput where either is not found."""
    student, recipe = find_student(path)
    evaluation, teacher = recipe.evaluation, _teacher(recipe, request.teacher)
    few, many = request.steps or recipe.method.build().student_steps, evaluation.reference_steps
    guidance = request.guidance_scale or evaluation.guidance_scale
    own = fixed_guidance(recipe) or guidance
    evaluator = _make_evaluator(recipe, teacher, student, request)
    samples, solver = range(len(request.prompts)), evaluation.solvers[0]
    if why := evaluator.unsupported_reason(solver, few) or evaluator.unsupported_reason(solver, many):
        raise BadInput(f"--steps: {why}")
    systems = [System("teacher", solver, steps, guidance) for steps in dict.fromkeys((many, few))]
    systems.append(System("student", "", few, own))
    rows = []
    for system in systems:
        images = _check_safety(student, evaluator.teacher.family, evaluator.sample(system, samples))
        rows.append((label(system.name, system.steps), _pixels(images)))
    grid(rows, request.prompts, out)
    say(f"picture: {out}")
    facts = {"picture": str(out), "student": str(student), "teacher": teacher.origin}
    return {**facts, "steps": few, "guidance_scale": own, "seed": request.seed}


def _teacher(recipe: Recipe, folder: str) -> TeacherSpec:
    teacher = recipe.teacher.at(Path(folder).resolve()) if folder else recipe.teacher
    if teacher.folder and not (Path(teacher.folder) / "model_index.json").is_file():
        raise BadInput(f"--teacher: {teacher.folder} is no diffusers pipeline; say where the student's teacher is now")
    return teacher


def _make_evaluator(recipe: Recipe, teacher: TeacherSpec, student: Path, request: Request) -> Evaluator:
    setting = EvaluationSetting(
        teacher=teacher,
        student=str(student),
        call=inference_arguments(recipe),
        negative_prompt=recipe.trajectories.negative_prompt,
        prompts=tuple(request.prompts),
        features="",  # nothing is measured
        check="",
        seed=request.seed,
        batch_size=len(request.prompts),
        device="cuda" if torch.cuda.is_available() else "cpu",
        threads=torch.get_num_threads(),
    )
    return Evaluator(setting)


def _check_safety(student: Path, teacher: Family, images: Tensor) -> Tensor:
    """Pictures that the student's safety checker finds fault with turn black, its teacher's too."""
    if (student / "safety_checker").is_dir():
        checker = StableDiffusionSafetyChecker.from_pretrained(student / "safety_checker").eval()
        reader = CLIPImageProcessor.from_pretrained(student / "feature_extractor")
    elif holds_pipeline(student) or not teacher.pipeline.components.get("safety_checker"):
        return images
    else:
        checker, reader = teacher.pipeline.safety_checker, teacher.pipeline.feature_extractor
    pixels = reader(list(_pixels(images)), return_tensors="pt").pixel_values
    return checker(clip_input=pixels.to(checker.device), images=images.clone())[0]


def _pixels(images: Tensor) -> Pixels:
    """Images in 0..1 as arrays of bytes, [n, height, width, 3]."""
    return (images.permute(0, 2, 3, 1) * 255).round().byte().numpy()
