"""Starts a student from another one, or from adapters, instead of from its teacher."""

from __future__ import annotations

from pathlib import Path

import torch
from diffusers.loaders.lora_base import LoraBaseMixin
from peft import LoraConfig, inject_adapter_in_model, set_peft_model_state_dict
from peft.tuners.lora import LoraLayer
from safetensors.torch import load_file
from torch import Tensor, nn

from fewstep.methods.base import Trained
from fewstep.orchestrator.errors import BadInput
from fewstep.orchestrator.families.network import ADAPTER, PipelineNetwork
from fewstep.orchestrator.recipe.recipe import Recipe
from fewstep.orchestrator.teachers.teacher import Teacher

FIELD = "training.init_from"


@torch.no_grad()
def warm_start(student: PipelineNetwork, recipe: Recipe, spec: Trained) -> None:
    """Lay the weights that `training.init_from` names over a student. Raises BadInput where they do not fit.

    A new guidance input stays as it is. Adapters are taken as they are by a student of adapters, and are merged into
    the weights of any other.
    """
    folder = Path(recipe.training.init_from)
    is_whole = (folder / "model_index.json").is_file()
    if (spec.lora.rank or not is_whole) and (folder / "lora").is_dir():
        folder, is_whole = folder / "lora", False
    elif spec.lora.rank and is_whole:
        raise BadInput(f"{FIELD}: {folder} is a whole pipeline, and {recipe.method.name} trains adapters; give some")
    state = _whole(folder, recipe, spec) if is_whole else _adapters(folder, recipe, spec)
    own = student.state_dict()
    unknown = [name for name, value in state.items() if name not in own or own[name].shape != value.shape]
    missing = [name for name in own if name not in state and ("lora" in name or not spec.lora.rank)]
    if odd := [*unknown, *(name for name in missing if "cond_proj" not in name)]:
        raise BadInput(f"{FIELD}: {folder} does not fit the student, which differs in {odd[0]}; {_mend(spec)}")
    student.load_state_dict(state, strict=False)


def _whole(folder: Path, recipe: Recipe, spec: Trained) -> dict[str, Tensor]:
    """The weights of an exported student."""
    other, teacher = Teacher(recipe.teacher.at(folder)), Teacher(recipe.teacher)
    prediction = spec.prediction or teacher.prediction
    if other.prediction != prediction:
        raise BadInput(f"{FIELD}: {folder} answers with {other.prediction}, and this student with {prediction}")
    return other.network.state_dict()


def _adapters(folder: Path, recipe: Recipe, spec: Trained) -> dict[str, Tensor]:
    """Adapters that diffusers loads: their own weights at the student's scale, or the teacher's with them merged."""
    teacher = Teacher(recipe.teacher)
    model, options = teacher.network.model, {"adapter_name": ADAPTER, "use_safetensors": True}
    try:
        if (folder / "adapter_config.json").is_file():
            _load_as_peft(model, folder)
        elif isinstance(teacher.pipeline, LoraBaseMixin):
            teacher.pipeline.load_lora_weights(str(folder), **options)  # pyright: ignore[reportCallIssue]
        else:
            model.load_lora_adapter(str(folder), prefix=None, **options)
    except (OSError, ValueError, RuntimeError) as error:
        why = " ".join(str(error).split())
        raise BadInput(
            f"{FIELD}: {folder} is neither a student's folder nor adapters of this teacher ({why})"
        ) from None
    if not spec.lora.rank:
        teacher.network.merge_lora()
        return teacher.network.state_dict()
    scale = (spec.lora.alpha or spec.lora.rank) / spec.lora.rank
    for layer in model.modules():
        if isinstance(layer, LoraLayer) and ADAPTER in layer.scaling:
            layer.lora_B[ADAPTER].get_parameter("weight").mul_(layer.scaling[ADAPTER] / scale)
    return {name: value for name, value in teacher.network.state_dict().items() if "lora" in name}


def _load_as_peft(model: nn.Module, folder: Path) -> None:
    """Load adapters that peft wrote, for models whose pipelines load none."""
    state = load_file(folder / "adapter_model.safetensors")
    weights = {name.removeprefix("base_model.model."): value for name, value in state.items()}
    inject_adapter_in_model(LoraConfig.from_pretrained(str(folder)), model, ADAPTER)
    set_peft_model_state_dict(model, weights, adapter_name=ADAPTER)


def _mend(spec: Trained) -> str:
    if spec.lora.rank:
        return f"adapters of rank {spec.lora.rank} on the same modules do (method.lora_rank, method.lora_targets)"
    return "a student of the same teacher does, with a guidance input only if this one has it"
