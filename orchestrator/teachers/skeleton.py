"""Builds a teacher without its weights, from the configurations of its networks and its scheduler."""

from __future__ import annotations

import inspect
import json
from pathlib import Path

import diffusers
import torch
from diffusers import DiffusionPipeline
from torch import nn

from fewstep.orchestrator.errors import BadInput
from fewstep.orchestrator.families.family import Family
from fewstep.orchestrator.families.network import TORCH_DTYPES
from fewstep.orchestrator.recipe.parsing import RECIPES
from fewstep.orchestrator.recipe.teacher import TeacherSpec
from fewstep.orchestrator.teachers.load import family_of
from fewstep.orchestrator.teachers.schedulers import scheduler_class

MODELS = RECIPES / "real" / "models"  # configurations of public models, one folder each
NETWORKS = ("unet", "transformer", "vae")


def has_configuration(spec: TeacherSpec) -> bool:
    """Does a configuration describe the whole network? Not of a factory's, nor of its students."""
    return not spec.factory and not (Path(spec.folder) / "network").is_dir()


def skeleton(spec: TeacherSpec, device: str | torch.device = "meta") -> Family:
    """A pipeline with networks of shapes alone and nothing that reads prompts. Needs no network connection.

    Raises BadInput for a hub id whose configuration did not come with fewstep, and for a factory's model.
    """
    if not has_configuration(spec):
        raise BadInput(
            f"teacher: {spec.origin or spec.factory} is a model of your own, which no configuration tells of; "
            "leave --offline out"
        )
    folder = Path(spec.folder) if spec.folder else MODELS / spec.hub.replace("/", "--")
    if not folder.is_dir():
        known = ", ".join(model.name.replace("--", "/") for model in sorted(MODELS.iterdir()))
        raise BadInput(f"teacher.hub: the configuration of {spec.hub} is not known offline; known are {known}")
    family = family_of(str(folder))
    index = json.loads((folder / "model_index.json").read_text())
    components: dict = dict.fromkeys(_required(family.pipeline_class))
    for name in NETWORKS:
        if name in index:
            components[name] = nn.Module.to(_empty(folder / name, index[name][1]), TORCH_DTYPES[spec.dtype])
    components["scheduler"] = scheduler_class(index["scheduler"][1]).from_pretrained(folder, subfolder="scheduler")
    return family(family.pipeline_class(**components), spec.sizes)


def _required(pipeline: type[DiffusionPipeline]) -> list[str]:
    """The names of the components that a pipeline cannot be made without."""
    parameters = list(inspect.signature(pipeline.__init__).parameters.values())[1:]
    return [parameter.name for parameter in parameters if parameter.default is inspect.Parameter.empty]


def _empty(folder: Path, name: str) -> nn.Module:
    """A network of diffusers by its configuration, without memory for its weights."""
    cls = getattr(diffusers, name)
    with torch.device("meta"):
        return cls.from_config(cls.load_config(folder))
