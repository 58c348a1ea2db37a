"""Read recipes from files, apply overrides, and write them with other values or other paths."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import yaml
from pydantic import BaseModel, ValidationError

from fewstep.methods.base import Trained
from fewstep.orchestrator.errors import BadInput, nearest
from fewstep.orchestrator.recipe.recipe import Recipe
from fewstep.orchestrator.recipe.section import sentence

RECIPES = Path(__file__).resolve().parents[2] / "recipes"
IN_THE_REPOSITORY = ("compare", "search", "results", "teachers")  # folders of recipes that no wheel holds
INPUTS = (  # fields that name files or folders to read
    "teacher.folder",
    "trajectories.prompts",
    "data.images",
    "data.imported",
    "training.init_from",
    "evaluation.prompts",
    "evaluation.images",
    "evaluation.statistics",
    "evaluation.baselines",
    "search.prompts",
)


def find(name: str) -> Path:
    """The recipe file at a path, or one that comes with fewstep by its name."""
    shipped = {file.stem: file for file in sorted((*RECIPES.glob("*.yaml"), *RECIPES.glob("real/*.yaml")))}
    file = Path(name)
    if file.is_file():
        return file.resolve()
    if name in shipped:
        return shipped[name]
    if not file.is_absolute() and len(file.parts) > 1 and file.parts[0] in IN_THE_REPOSITORY:
        raise BadInput(
            f"no recipe at {name!r}; recipes/{file.parts[0]} comes with fewstep's repository, not with the "
            "installed package; clone that, and name the file in it"
        )
    hint = nearest(name, shipped)
    raise BadInput(f"no recipe at {name!r}{hint}; give a YAML file or one of {', '.join(shipped)}")


def load(name: str, overrides: Sequence[str] = ()) -> Recipe:
    """Read, override (`method.student_steps=2`) and check a recipe. Raises BadInput with one sentence."""
    file = find(name)
    data = read_yaml(file, "recipe", Recipe)
    for override in overrides:
        _override(data, override)
    recipe = parse(data)
    return _with_paths(recipe, file.parent)


def read_yaml(file: Path, what: str, model: type[BaseModel]) -> dict[str, object]:
    """The mapping in a file. Raises BadInput where it is none."""
    try:
        data = yaml.safe_load(file.read_text())
    except OSError as error:
        raise BadInput(f"{file} cannot be read: {error.strerror}") from None
    except (yaml.YAMLError, ValueError) as error:  # no text at all, or a date that is none
        raise BadInput(f"{file} is not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(data, dict):
        raise BadInput(f"{file} holds no {what}: it must be a mapping with the keys {', '.join(model.model_fields)}")
    return data


def parse(data: Mapping[str, object]) -> Recipe:
    """A recipe from plain data. Raises BadInput."""
    try:
        recipe = Recipe.model_validate(data)
    except ValidationError as error:
        raise BadInput(sentence(error, Recipe)) from None
    _check_adapters(recipe)
    return recipe


def check_training(recipe: Recipe) -> None:
    """Raises BadInput where a recipe that only samples the teacher is to train a student."""
    if not recipe.has_training:
        raise BadInput(
            "training is missing: only what samples the teacher alone, like generate, does without this section; "
            "add it to the recipe with its number of steps, or give training.steps=1000"
        )


def _check_adapters(recipe: Recipe) -> None:
    """Refuse to shard or to move the weights that low-rank adapters share with the teacher."""
    nets = [net for round in recipe.method.build().rounds() for net in round.nets.values() if isinstance(net, Trained)]
    has_adapters = any(net.lora.rank for net in nets)
    if not recipe.export.merged and (not has_adapters or any(net.guidance_input for net in nets)):
        why = "has a guidance input, which is no adapter" if has_adapters else "trains no adapters"
        raise BadInput(
            f"export.merged: false exports adapters alone, and {recipe.method.name} {why}; leave it out, or choose a "
            "method with lora_rank and without that input, like lcm-lora"
        )
    if not has_adapters:
        return
    if recipe.training.placement in ("shard", "offload"):
        raise BadInput(
            f"training.placement: {recipe.training.placement} would take the teacher's weights away from the adapters "
            "that train over them; leave it out: all networks share one copy"
        )
    if recipe.training.zero_stage == 3:
        raise BadInput(
            "training.zero_stage: 3 cuts up every weight, and low-rank adapters train over the teacher's own, whole "
            "and one copy for all networks; choose 2, which shards all that adapters add, or method.lora_rank=0"
        )


def _override(data: dict[str, object], override: str) -> None:
    key, equals, value = override.partition("=")
    if not key or not equals:
        raise BadInput(f"override {override!r} gives no field a value; write it as training.steps=100")
    try:
        parsed = yaml.safe_load(value)
    except (yaml.YAMLError, ValueError):
        raise BadInput(f"override {override!r}: {value} is not valid YAML; write it as in a recipe") from None
    _set(data, key, parsed)


def _set(data: dict[str, object], key: str, value: object) -> None:
    field = key.removeprefix("search.space.")  # the space has whole fields for keys, with dots in their names
    *parents, last = ("search", "space", field) if field != key else key.split(".")
    section = data
    for parent in parents:
        inner = section.setdefault(parent, {})
        if not isinstance(inner, dict):
            raise BadInput(f"{key}: {parent} is not a section")
        section = inner
    section[last] = value


def vary(recipe: Recipe, changes: Mapping[str, object]) -> Recipe:
    """The recipe with other values in some fields, like {"method.skip": 40}. Raises BadInput as `load` does."""
    data = recipe.model_dump(mode="json", exclude_unset=True)
    for key, value in changes.items():
        _set(data, key, value)
    return parse(data)


def relocate(recipe: Recipe, move: Callable[[str, str], str]) -> Recipe:
    """The recipe with each input path that it names put through `move(field, path)`."""
    moved: dict[str, dict[str, str]] = {}
    for field in INPUTS:
        section, name = field.split(".")
        if path := getattr(getattr(recipe, section), name):
            moved.setdefault(section, {})[name] = move(field, path)
    changed = {section: getattr(recipe, section).model_copy(update=paths) for section, paths in moved.items()}
    return recipe.model_copy(update=changed)


def _with_paths(recipe: Recipe, folder: Path) -> Recipe:
    """Input paths are relative to the recipe's folder (outputs to where the command runs), and must exist."""

    def absolute(field: str, path: str) -> str:
        if "://" in path:
            return path
        full = (folder / path).resolve()
        if not full.exists() and field != "evaluation.baselines":
            raise BadInput(f"{field}: there is nothing at {full}")
        return str(full)

    recipe = relocate(recipe, absolute)
    teacher = recipe.teacher.folder
    if teacher and not (Path(teacher) / "model_index.json").is_file():
        raise BadInput(f"teacher.folder: {teacher} is no diffusers pipeline, it has no model_index.json")
    return recipe


def relative_to(recipe: Recipe, folder: Path) -> Recipe:
    """The recipe with its input paths relative to a folder, for a file that is written there."""
    return relocate(recipe, lambda field, path: path if "://" in path else os.path.relpath(path, folder))
