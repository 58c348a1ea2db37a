"""The recipe: everything a run is told, checked before anything starts."""

from __future__ import annotations

import dataclasses
import math
import os
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Literal

import yaml
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeInt,
    PositiveInt,
    TypeAdapter,
    ValidationError,
    field_validator,
    model_validator,
)

from methods import METHODS
from methods.base import Method, Trained
from orchestrator.errors import BadInput, nearest
from orchestrator.search_spec import Search
from orchestrator.section import Section
from orchestrator.solvers import ODE_SOLVERS, SOLVERS
from orchestrator.store import check_url

RECIPES = Path(__file__).resolve().parent.parent / "recipes"
Precision = Literal["float32", "bfloat16", "float16"]
Json = Mapping[str, object]
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


class TeacherSpec(Section):
    """The diffusion model to distill: a diffusers folder, a hub id with a pinned revision, or one of your own."""

    folder: str = ""
    hub: str = ""
    revision: str = ""  # of the hub id: a commit
    factory: str = ""  # package.module:function, which returns an `orchestrator.own_model.OwnModel`
    dtype: Precision = "float32"
    # Pixels along a side, or [height, width] of several sizes, which shards take in turn; the first is the one that is
    # judged. 0 is the pipeline's own.
    resolution: NonNegativeInt | tuple[tuple[PositiveInt, PositiveInt], ...] = 0
    compile: bool = False  # with torch.compile, where the teacher samples and where it teaches

    @model_validator(mode="after")
    def _one_place(self) -> TeacherSpec:
        if [bool(place) for place in (self.folder, self.hub, self.factory)].count(True) != 1:
            raise ValueError(
                "needs one of `folder` (a diffusers pipeline on disk), `hub` (a model id) and `factory` (a function)"
            )
        if self.factory and not re.fullmatch(r"[\w.]+:\w+", self.factory):
            raise ValueError(f"factory {self.factory!r} is no function; write it like package.module:function")
        if self.hub and not re.fullmatch("[0-9a-f]{40}", self.revision):
            raise ValueError(
                f"revision {self.revision!r} is no commit of {self.hub}; give all 40 digits of one, "
                "because a branch or a tag may move"
            )
        if self.revision and not self.hub:
            raise ValueError(f"revision {self.revision!r} is for a `hub` id; anything else is what it holds")
        return self

    @property
    def sizes(self) -> tuple[tuple[int, int], ...]:
        """Height and width in pixels of what is painted, none where that is the pipeline's own."""
        if isinstance(self.resolution, tuple):
            return self.resolution
        return ((self.resolution, self.resolution),) if self.resolution else ()

    @property
    def place(self) -> str:
        """Where it comes from."""
        return self.folder or self.hub or self.factory

    def at(self, folder: str | Path) -> TeacherSpec:
        """Another pipeline of its kind, loaded as this one is."""
        return self.model_copy(update={"folder": str(folder), "hub": "", "revision": "", "factory": ""})


class Trajectories(Section):
    """What the teacher samples once, for every training run after it."""

    # .txt (one a line), or .csv, .parquet, .jsonl or a Hugging Face datasets folder with a column; "" where the teacher
    # is told nothing
    prompts: str = ""
    prompt_column: str = "prompt"
    prompt_repeats: int = Field(default=1, gt=0)  # samples in a row with the same prompt
    prompt_order: Literal["rounds", "random"] = "rounds"  # each equally often, or drawn independently
    samples: int = Field(default=0, ge=0)
    negative_prompt: str = ""
    num_inference_steps: int = Field(default=50, gt=0)
    solver: str = "ddim"
    tolerance: float = Field(default=1e-5, ge=1e-6)  # of rk45, absolute and relative; float32 holds no less
    guidance_scale: tuple[float, float] = (1.0, 1.0)  # a value, or a range to draw from per sample; 1 is none
    guidance_scales: tuple[float, ...] = ()  # or a list to draw from
    save: Literal["all", "ends"] | tuple[int, ...] = "all"  # points of a path; the ends are always among them
    dtype: Literal["float16", "float32"] = "float16"  # of the stored tensors
    seed: int = 0
    batch_size: PositiveInt | Literal["auto"] = 32  # samples per teacher evaluation; part of the plan
    shard_size: int = Field(default=256, gt=0)  # samples per shard, a multiple of batch_size
    store: str = ""  # a folder or s3://bucket/folder that several runs may share; the run's own by default
    single_writer: bool = False  # for a store without put-if-absent: nothing then keeps two drivers apart
    deadline_s: float = Field(default=3600.0, gt=0)  # for one shard, before its actor is given up
    attempts: int = Field(default=3, gt=0)  # at one shard, before it is set aside

    @field_validator("store")
    @classmethod
    def _place(cls, value: str) -> str:
        check_url(value)
        return value

    @field_validator("guidance_scale", mode="before")
    @classmethod
    def _range(cls, value: object) -> object:
        return (value, value) if isinstance(value, int | float) else value

    @model_validator(mode="after")
    def _consistent(self) -> Trajectories:
        low, high = self.guidance_scale
        if low > high:
            raise ValueError(f"guidance_scale range is reversed: [{low:g}, {high:g}]; write [{high:g}, {low:g}]")
        if low < 1:
            raise ValueError(f"guidance_scale starts at {low:g}; 1 is no guidance and the least")
        if self.guidance_scales and min(self.guidance_scales) < 1:
            raise ValueError(f"guidance_scales holds {min(self.guidance_scales):g}; 1 is no guidance and the least")
        if self.guidance_scales and self.guidance_scale != (1, 1):
            raise ValueError("guidance_scale and guidance_scales are both given; keep one of them")
        if self.batch_size != "auto" and self.shard_size % self.batch_size:
            raise ValueError(f"shard_size must be a multiple of batch_size={self.batch_size}, got {self.shard_size}")
        if self.solver not in SOLVERS:
            raise ValueError(f"solver {self.solver!r} is not one of {', '.join(ODE_SOLVERS)}")
        if self.solver not in ODE_SOLVERS:
            raise ValueError(
                f"solver {self.solver!r} draws noise on its way, so that its states are no path of the ODE; "
                f"choose one of {', '.join(ODE_SOLVERS)}"
            )
        return self


class Data(Section):
    """What there is to train on that the run does not sample: real images, encoded once, and what was imported."""

    images: str = ""  # Parquet (column `image`, Hugging Face's format) or a folder; "" is the teacher's own samples
    caption_column: str = "prompt"  # text or a class's number; "" is no condition
    imported: str = ""  # a data set that `fewstep import` made, instead of what the teacher would sample
    batch_size: int = Field(default=8, gt=0)  # images that the autoencoder sees together; part of the plan


class MethodSpec(Section):
    """A method by name, and its own hyperparameters (`fewstep methods` lists both)."""

    model_config = ConfigDict(extra="allow", frozen=True)

    name: str

    def build(self) -> Method:
        """The method itself. Raises BadInput for an unknown name or field, or a value that the method refuses."""
        if self.name not in METHODS:
            known = ", ".join(METHODS)
            raise BadInput(
                f"method.name: no method is called {self.name!r}{nearest(self.name, METHODS)}; known: {known}"
            )
        cls = METHODS[self.name]
        given = dict(self.model_extra or {})
        known_fields = [field.name for field in dataclasses.fields(cls)]
        for key in given:
            if key not in known_fields:
                raise BadInput(f"method.{key} is not a field of {self.name}{nearest(key, known_fields)}")
        try:
            return TypeAdapter(cls).validate_python(given)
        except ValidationError as error:
            raise BadInput(sentence(error, "method")) from None

    def resolved(self) -> Json:
        """Every field of the method, defaults filled in."""
        return {"name": self.name} | dataclasses.asdict(self.build())


class Training(Section):
    """How the student is trained. Sizes are global: over all workers and accumulation steps."""

    steps: int = Field(gt=0)
    init_from: str = ""  # a student's folder, or a LoRA's, that the first round goes on from; the teacher by default
    batch_size: int = Field(default=64, gt=0)
    accumulation: int = Field(default=1, gt=0)
    learning_rate: float = Field(1e-4, gt=0)
    weight_decay: float = Field(default=0.0, ge=0)
    warmup_steps: int = Field(default=0, ge=0)
    decay_steps: int = Field(default=0, ge=0)  # the last ones of a round, in which the rate falls linearly to zero
    max_grad_norm: float = Field(default=1.0, gt=0)
    precision: Precision = "float32"
    seed: int = 0
    checkpoint_every: int = Field(default=500, gt=0)  # steps
    keep_checkpoints: int = Field(default=2, gt=1)
    log_every: int = Field(default=20, gt=0)  # steps
    evaluate_every: int = Field(default=0, ge=0)  # steps of the last round, whose best becomes its result; 0 is never
    evaluate_at: int = Field(default=0, ge=0)  # steps of the student; 0 is as many as the method is made for
    patience: int = Field(default=0, ge=0)  # evaluations without a better one, then training stops; 0 goes on
    features: str = "mobilenetv2"  # the feature network of perceptual and adversarial losses
    gradient_checkpointing: bool = False  # compute activations again on the way back instead of keeping them
    zero_stage: Literal[0, 1, 2, 3] = 0
    offload: Literal["none", "optimizer", "all"] = "none"  # to the host's memory; all is the weights too, at ZeRO-3
    placement: Literal["auto", "replicate", "shard", "offload"] = "auto"  # of the teacher; auto is below
    deepspeed: Json = {}  # merged over the configuration that fewstep writes

    @model_validator(mode="after")
    def _evaluated(self) -> Training:
        if self.patience and not self.evaluate_every:
            raise ValueError(f"patience={self.patience} counts evaluations, and there are none; set evaluate_every")
        return self

    @model_validator(mode="after")
    def _staged(self) -> Training:
        if self.precision != "float32" and not self.zero_stage:
            raise ValueError(
                f"precision {self.precision} needs zero_stage 1, 2 or 3, which keep the float32 weights that averages "
                "and optimizer steps are made of; set zero_stage to 1"
            )
        if self.offload != "none" and not self.zero_stage:
            raise ValueError("offload needs zero_stage 1, 2 or 3; set zero_stage to 1")
        if self.offload == "all" and self.zero_stage != 3:
            raise ValueError("offload of all, the weights too, needs zero_stage 3; set that, or offload the optimizer")
        zero = self.deepspeed.get("zero_optimization")
        if isinstance(zero, Mapping) and zero.get("round_robin_gradients"):
            raise ValueError(
                "deepspeed.zero_optimization.round_robin_gradients deals weights out by the number of ranks, so that "
                "averages could not go on with another; leave it out"
            )
        if self.evaluate_every and self.placement in ("shard", "offload"):
            raise ValueError(
                f"placement {self.placement} leaves no rank the whole teacher, of which evaluate_every makes the "
                "student that it judges; leave one of the two out"
            )
        return self

    @property
    def teacher_placement(self) -> Literal["replicate", "shard", "offload"]:
        """Where the teacher is kept. By itself it is cut up where the student is, unless exams need it whole."""
        if self.placement == "auto":
            return "shard" if self.zero_stage == 3 and not self.evaluate_every else "replicate"
        return self.placement


PROTOCOLS: Mapping[str, Mapping[str, int]] = {"coco-30k": {"samples": 30_000}}  # what each fixes


class Evaluation(Section):
    """How the student is judged: against the teacher at the same few steps, and at many."""

    prompts: str = ""  # as trajectories.prompts; none that the teacher was trained on, ideally
    protocol: Literal["", "coco-30k"] = ""  # of the field: every line of `prompts` once, by real images
    samples: int = Field(default=500, gt=1)
    steps: tuple[int, ...] = (1, 2, 4, 8)  # of the student; of the teacher as many evaluations of its network
    reference_steps: int = Field(default=50, gt=0)  # of the teacher's reference
    solvers: tuple[str, ...] = ("ddim", "dpm++", "unipc")  # for the teacher's best; the first makes its reference
    guidance_scales: tuple[float, ...] = (1.0, 1.5, 2.0, 3.0, 5.0)  # candidates; `guidance_scale` is added
    guidance_scale: float = Field(default=3.0, ge=1)  # of the reference
    student_guidance_scales: tuple[float, ...] = ()  # candidates where guidance is an input; () is the teacher's
    selection_samples: int = Field(default=256, gt=1)  # for choosing, and while training, on seeds of their own
    images: str = ""  # a Parquet file of real images (column `image`), in Hugging Face's format
    statistics: str = ""  # .npz of real images: `mu` and `sigma` of their features, or a file of features of fewstep's
    features: str = "mobilenetv2"
    seed: int = 1_000_000
    batch_size: int = Field(default=64, gt=0)
    bootstraps: int = Field(default=1000, gt=0)
    baselines: str = ""  # a folder of stored teacher features, reused where the plan's hash matches

    @field_validator("steps")
    @classmethod
    def _distinct(cls, value: tuple[int, ...]) -> tuple[int, ...]:
        if not value or min(value) < 1 or len(set(value)) < len(value):
            raise ValueError(f"steps must be distinct positive numbers, like [1, 2, 4, 8]; got {list(value)}")
        return value

    @model_validator(mode="before")
    @classmethod
    def _as_protocol(cls, data: dict[str, object]) -> dict[str, object]:
        protocol = str(data.get("protocol", ""))
        fixed = PROTOCOLS.get(protocol, {})
        for name, value in fixed.items():
            if data.get(name, value) != value:
                raise ValueError(f"protocol {protocol} has {name}={value}, got {data[name]}; leave one of the two out")
        return {**data, **fixed}

    @model_validator(mode="after")
    def _real(self) -> Evaluation:
        if self.protocol and not (self.statistics or self.images):
            raise ValueError(
                f"protocol {self.protocol} compares with real images; give their `statistics`, or `images` themselves"
            )
        return self

    @model_validator(mode="after")
    def _few(self) -> Evaluation:
        if max(self.steps) >= self.reference_steps:
            raise ValueError(
                f"steps goes up to {max(self.steps)}, which must be fewer than reference_steps={self.reference_steps}"
            )
        return self

    @field_validator("solvers")
    @classmethod
    def _known(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if not value:
            raise ValueError("no solver is named; list at least one")
        countable = [name for name, solver in SOLVERS.items() if not solver.is_adaptive]
        for name in value:
            if name not in countable:
                raise ValueError(f"{name!r} is no solver of so many evaluations, like {', '.join(countable)}")
        if SOLVERS[value[0]].is_stochastic:
            raise ValueError(f"the first makes the reference, and {value[0]!r} draws noise on its way; put ddim first")
        return value


class Export(Section):
    """What the student's folder holds."""

    merged: bool = True  # a pipeline; else a LoRA's adapters alone, for the teacher's own pipeline


class Resources(Section):
    """What the run asks of the cluster."""

    workers: int = Field(default=1, gt=0)  # training processes
    min_workers: int = Field(default=0, ge=0)  # to go on with while the cluster holds no more; 0 is all
    generators: int = Field(default=1, gt=0)  # sampling actors
    min_generators: int = Field(default=0, ge=0)  # to start with, while the cluster grows; 0 is all
    cpus_per_worker: float = Field(default=1.0, gt=0)
    gpus_per_worker: float = Field(default=0.0, ge=0)
    threads_per_worker: int = Field(default=1, gt=0)  # of torch, on the CPU
    address: str = ""  # of a running Ray cluster; starts one here by default
    wait_s: float = Field(default=0.0, ge=0)  # for a cluster that scales up to give what is asked
    cache: str = "/tmp/fewstep-cache"  # a folder on each node, for trajectories that were read from S3
    cache_gb: float = Field(default=20.0, ge=0)  # at most, for all processes of a node together

    @model_validator(mode="after")
    def _consistent(self) -> Resources:
        for few, many in (("min_workers", self.workers), ("min_generators", self.generators)):
            if getattr(self, few) > many:
                raise ValueError(f"{few}={getattr(self, few)} must be at most {few.removeprefix('min_')}={many}")
        return self

    @property
    def first_workers(self) -> int:
        """Training processes that must find room before anything starts."""
        return self.min_workers or self.workers

    @property
    def first_generators(self) -> int:
        """Sampling actors that must find room before anything starts."""
        return self.min_generators or self.generators


class Recipe(Section):
    """One run, from teacher to report."""

    teacher: TeacherSpec
    trajectories: Trajectories = Trajectories()
    data: Data = Data()
    method: MethodSpec
    training: Training
    evaluation: Evaluation = Evaluation()
    export: Export = Export()
    resources: Resources = Resources()
    search: Search = Search()
    output: str
    trackers: tuple[Literal["tensorboard", "wandb", "mlflow"], ...] = ("tensorboard",)  # that training is followed at

    @model_validator(mode="after")
    def _one_size(self) -> Recipe:
        if len(self.teacher.sizes) > 1 and self.data.imported:
            raise ValueError(
                f"teacher.resolution has {len(self.teacher.sizes)} sizes, and what is imported one; give one"
            )
        return self

    @model_validator(mode="after")
    def _divisible(self) -> Recipe:
        told, counts = self.resources, range(self.resources.first_workers, self.resources.workers + 1)
        parts = math.lcm(*counts) * self.training.accumulation
        if self.training.batch_size % parts:
            workers = "every number of workers that there may be" if told.min_workers else "resources.workers"
            raise ValueError(
                f"training.batch_size={self.training.batch_size} must be a multiple of "
                f"{workers} x training.accumulation = {parts}"
            )
        if self.teacher.compile and self.training.teacher_placement != "replicate":
            raise ValueError(
                f"teacher.compile: compiled code needs the whole teacher, and training.placement is "
                f"{self.training.teacher_placement}; leave compile out, or set training.placement=replicate"
            )
        return self

    def resolved(self) -> Json:
        """The recipe as plain data with every default filled in."""
        return self.model_dump(mode="json") | {"method": self.method.resolved()}


def find(name: str) -> Path:
    """The recipe file at a path, or one that comes with fewstep by its name."""
    shipped = {file.stem: file for file in sorted((*RECIPES.glob("*.yaml"), *RECIPES.glob("real/*.yaml")))}
    file = Path(name)
    if file.is_file():
        return file.resolve()
    if name in shipped:
        return shipped[name]
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
        raise BadInput(sentence(error)) from None
    _check_adapters(recipe)
    return recipe


def _check_adapters(recipe: Recipe) -> None:
    """Refuse to cut up or to move the weights that low-rank adapters share with the teacher."""
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
        told = yaml.safe_load(value)
    except (yaml.YAMLError, ValueError):
        raise BadInput(f"override {override!r}: {value} is not valid YAML; write it as in a recipe") from None
    _set(data, key, told)


def _set(data: dict[str, object], key: str, value: object) -> None:
    field = key.removeprefix("search.space.")  # the space is told by whole fields, whose names have dots
    *parents, last = ("search", "space", field) if field != key else key.split(".")
    place = data
    for parent in parents:
        inner = place.setdefault(parent, {})
        if not isinstance(inner, dict):
            raise BadInput(f"{key}: {parent} is not a section")
        place = inner
    place[last] = value


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
    """The recipe as a file in this folder would say it."""
    return relocate(recipe, lambda field, path: path if "://" in path else os.path.relpath(path, folder))


KINDS = {  # what pydantic would say of a wrong kind of value in the words of Python
    **dict.fromkeys(("model_type", "dict_type", "mapping_type"), "must be a section, with keys of its own"),
    "tuple_type": "must be a list, in brackets",
    "string_type": "must be text",
}


def sentence(error: ValidationError, section: str = "", model: type[BaseModel] = Recipe) -> str:
    """The first thing that is wrong with a `model`, as a person would say it."""
    first = error.errors()[0]
    where = ".".join(str(part) for part in (section, *first["loc"]) if part != "")
    if first["type"] == "extra_forbidden":
        return f"{where} is not a known key{nearest(str(first['loc'][-1]), _keys(model, first['loc'][:-1]))}"
    if first["type"] == "missing":
        return f"{where} is missing"
    message = KINDS.get(first["type"], first["msg"].removeprefix("Value error, "))
    if first["type"] == "value_error":
        return f"{where}: {message}" if where else message
    return f"{where}: {message[0].lower()}{message[1:]}, got {first['input']!r}"


def _keys(section: type[BaseModel], place: Sequence[int | str]) -> list[str]:
    """The keys that are known at a place in a model."""
    for part in place:
        if str(part) not in section.model_fields:
            return []
        inner = section.model_fields[str(part)].annotation
        if not (isinstance(inner, type) and issubclass(inner, BaseModel)):
            return []
        section = inner
    return list(section.model_fields)
