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
from fewstep.orchestrator.evaluation.evaluator import Evaluator
from fewstep.orchestrator.evaluation.system import EvaluationSetting
from fewstep.orchestrator.families.network import is_adapter
from fewstep.orchestrator.recipe.recipe import Recipe
from fewstep.orchestrator.runs.run import RESULT
from fewstep.orchestrator.sampling.guidance import GuidedDenoiser
from fewstep.orchestrator.sampling.ode import sample_path
from fewstep.orchestrator.sampling.solvers import SOLVERS
from fewstep.orchestrator.students.inference import inference_arguments
from fewstep.orchestrator.students.student import trained_of
from fewstep.orchestrator.teachers.teacher import Teacher


def untrained(recipe: Recipe, folder: Path, *, guidance_input: bool = True, **facts: str) -> Path:
    """A round's result folder as training writes it."""
    network = Teacher(recipe.teacher).network
    if guidance_input:
        network = network.with_guidance_input()
    last = recipe.method.build().rounds()[-1]
    start_time = trained_of(last, last.result).start_time
    return _result(folder, network.state_dict(), guidance_input=guidance_input, start_time=start_time, **facts)


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


def evaluator(recipe: Recipe, student: Path, prompts: Sequence[str]) -> Evaluator:
    """Samples an exported student and its teacher, a batch for all prompts."""
    call = inference_arguments(recipe)
    batch = len(prompts)
    return Evaluator(
        EvaluationSetting(recipe.teacher, str(student), call, "", tuple(prompts), "mobilenetv2", "", 0, batch, "cpu", 1)
    )


def teacher_path(
    teacher: Teacher, solver: str, prompts: Sequence[str], guidance_scale: float, noise: Tensor
) -> tuple[Tensor, Tensor, int]:
    """Its guided path in four steps, the times of it, and the evaluations of the network that it took."""
    scale = torch.full((len(prompts),), guidance_scale)
    guided = GuidedDenoiser(teacher.denoiser(), teacher.encode(prompts), teacher.encode([""]), scale)
    states, times = sample_path(SOLVERS[solver], teacher.scheduler, guided, noise, 4)
    return states, times, guided.evaluations


def stock_with_adapters(recipe: Recipe, folder: Path) -> DiffusionPipeline:
    """The teacher's own pipeline in stock diffusers, which has loaded adapters that were saved to `folder`."""
    teacher = Teacher(recipe.teacher)
    network = teacher.network.with_lora(LoRA(2))
    teacher.pipeline.register_modules(**{network.component: network.model})
    teacher.family.save_lora(folder)
    dataset_kind = type(teacher.pipeline).from_pretrained(recipe.teacher.folder)
    dataset_kind.load_lora_weights(str(folder))
    return dataset_kind
