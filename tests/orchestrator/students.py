"""Students that nobody trained, and how they and their teachers are sampled."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from diffusers import DiffusionPipeline
from safetensors.torch import save_file
from torch import Tensor

from fewstep.methods.base import LoRA
from fewstep.orchestrator.evaluation.evaluator import Judge
from fewstep.orchestrator.evaluation.system import Setting
from fewstep.orchestrator.families.network import is_adapter
from fewstep.orchestrator.recipe.recipe import Recipe
from fewstep.orchestrator.sampling.guidance import GuidedTeacher
from fewstep.orchestrator.sampling.ode import sample_path
from fewstep.orchestrator.sampling.solvers import SOLVERS
from fewstep.orchestrator.students.inference import call_of
from fewstep.orchestrator.students.round_result import RESULT
from fewstep.orchestrator.teachers.teacher import Teacher


def untrained(recipe: Recipe, folder: Path, *, guidance_input: bool = True) -> Path:
    """A round's result folder as training writes it."""
    network = Teacher(recipe.teacher).network
    if guidance_input:
        network = network.with_guidance_input()
    return _result(folder, network.state_dict(), guidance_input=guidance_input)


def untrained_lora(recipe: Recipe, folder: Path) -> Path:
    """The same of adapters of rank 2."""
    network = Teacher(recipe.teacher).network.with_lora(LoRA(2))
    trained = {name: weight.data for name, weight in network.named_parameters() if is_adapter(name)}
    return _result(folder, trained, lora={"rank": 2})


def _result(folder: Path, state: Mapping[str, Tensor], **facts: object) -> Path:
    result = folder / RESULT
    result.mkdir(parents=True)
    save_file(dict(state), result / "result.safetensors")
    told = {"guidance_input": False, "prediction": "", "schedule": "", "lora": {}}
    (result / "student.json").write_text(json.dumps(told | facts))
    return result


def judge(recipe: Recipe, student: Path, prompts: Sequence[str]) -> Judge:
    """Samples an exported student and its teacher, a batch for all prompts."""
    call = call_of(recipe)
    batch = len(prompts)
    return Judge(Setting(recipe.teacher, str(student), call, "", tuple(prompts), "mobilenetv2", 0, batch, "cpu", 1))


def teacher_path(
    teacher: Teacher, solver: str, prompts: Sequence[str], guidance_scale: float, noise: Tensor
) -> tuple[Tensor, Tensor, int]:
    """Its guided path in four steps, the times of it, and the evaluations of the network that it took."""
    scale = torch.full((len(prompts),), guidance_scale)
    guided = GuidedTeacher(teacher.denoiser(), teacher.encode(prompts), teacher.encode([""]), scale)
    states, times = sample_path(SOLVERS[solver], teacher.scheduler, guided, noise, 4)
    return states, times, guided.evaluations


def stock_with_adapters(recipe: Recipe, folder: Path) -> DiffusionPipeline:
    """The teacher's own pipeline in stock diffusers, which has loaded adapters that were saved to `folder`."""
    teacher = Teacher(recipe.teacher)
    network = teacher.network.with_lora(LoRA(2))
    teacher.pipeline.register_modules(**{network.component: network.model})
    teacher.family.save_lora(folder)
    stock = type(teacher.pipeline).from_pretrained(recipe.teacher.folder)
    stock.load_lora_weights(str(folder))
    return stock
