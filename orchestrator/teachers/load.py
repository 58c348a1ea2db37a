"""Loads a teacher or a student as the family of its pipeline, never running code from its folder."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from diffusers import DiffusionPipeline, SchedulerMixin
from torch import nn

from fewstep.orchestrator.errors import BadInput, nearest
from fewstep.orchestrator.families.class_conditional import ClassConditional, Unconditional
from fewstep.orchestrator.families.custom import Custom, model_from
from fewstep.orchestrator.families.dit import DiT
from fewstep.orchestrator.families.family import Family
from fewstep.orchestrator.families.flux import Flux
from fewstep.orchestrator.families.network import TORCH_DTYPES
from fewstep.orchestrator.families.pixart import PixArtAlpha, PixArtSigma
from fewstep.orchestrator.families.stable_diffusion import StableDiffusion, StableDiffusionXL
from fewstep.orchestrator.families.stable_diffusion_3 import StableDiffusion3
from fewstep.orchestrator.pipelines.own import OwnNetwork
from fewstep.orchestrator.recipe.teacher import TeacherSpec
from fewstep.orchestrator.teachers.downloads import use_fast_downloads
from fewstep.orchestrator.teachers.folders import holds_pipeline
from fewstep.orchestrator.teachers.schedulers import OURS, scheduler_class

_TEXT = (StableDiffusion, StableDiffusionXL, StableDiffusion3, Flux, PixArtAlpha, PixArtSigma)
_ALL = (*_TEXT, ClassConditional, DiT, Unconditional, Custom)
FAMILIES: dict[str, type[Family]] = {family.pipeline_class.__name__: family for family in _ALL}
FAMILIES["DDIMPipeline"] = Unconditional  # loaded as a DDPMPipeline, which keeps the scheduler of the folder


def family_of(source: str, revision: str = "") -> type[Family]:
    """The family of a pipeline's folder or hub id. Raises BadInput for one that fewstep does not distill.

    A folder with code of its own is known by the name of its class; that code is never run.
    """
    options: dict = {"revision": revision} if revision else {}
    config, _ = DiffusionPipeline.load_config(source, return_unused_kwargs=True, **options)
    class_name = config["_class_name"]  # with the name of its file before it, where the folder has its code
    name = class_name if isinstance(class_name, str) else class_name[-1]
    if name not in FAMILIES:
        known = ", ".join(FAMILIES)
        raise BadInput(f"teacher: {source} is a {name}{nearest(name, FAMILIES)}; fewstep distills {known}")
    return FAMILIES[name]


def load(spec: TeacherSpec, device: str | torch.device = "cpu") -> Family:
    """A pipeline on a device. Raises BadInput where there is none of a known family."""
    if spec.factory:
        own = model_from(spec.factory)
        nn.Module.to(own.network, device, TORCH_DTYPES[spec.dtype])
        return Custom(own, spec.sizes)
    source = spec.origin
    arguments: dict = {"revision": spec.revision} if spec.revision else {}
    use_fast_downloads()
    try:
        family = family_of(source, spec.revision)
        scheduler = Path(source) / "scheduler"
        if brings_scheduler := any((scheduler / f"{module}.py").exists() for module in OURS.values()):
            arguments["scheduler"] = None
        if brings_network := (Path(source) / "network" / "own.py").exists():
            arguments["network"] = None
        pipeline = family.pipeline_class.from_pretrained(source, torch_dtype=TORCH_DTYPES[spec.dtype], **arguments)
        if brings_scheduler:  # an exported student's; the code is the one here, no folder's is run
            pipeline.register_modules(scheduler=_scheduler_class(scheduler).from_pretrained(scheduler))
        if brings_network:
            network = OwnNetwork.from_pretrained(source, subfolder="network", torch_dtype=TORCH_DTYPES[spec.dtype])
            pipeline.register_modules(network=network)
    except (OSError, ValueError) as error:
        raise BadInput(f"teacher: {source} cannot be loaded as a diffusers pipeline: {error}") from error
    pipeline.set_progress_bar_config(disable=True)
    return family(pipeline.to(device), spec.sizes)


def load_student(teacher: TeacherSpec, folder: Path, device: str | torch.device = "cpu") -> Family:
    """An exported student: a pipeline of its own, or its adapters and its scheduler in the teacher's."""
    if holds_pipeline(folder):
        return load(teacher.at(folder), device)
    family = load(teacher, device)
    family.pipeline.load_lora_weights(str(folder / "lora"))
    scheduler = folder / "scheduler"
    family.pipeline.register_modules(scheduler=_scheduler_class(scheduler).from_pretrained(scheduler))
    return family


def _scheduler_class(folder: Path) -> type[SchedulerMixin]:
    return scheduler_class(json.loads((folder / "scheduler_config.json").read_text())["_class_name"])
