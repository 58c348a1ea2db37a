"""PixArt, DiT, UNets that are told a class or nothing; noise levels of every scheduler; where models are."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import diffusers
import pytest
import torch
from diffusers import DDIMPipeline, DDPMPipeline, DiffusionPipeline, EDMEulerScheduler, PixArtAlphaPipeline
from peft import PeftModel
from torch import Tensor

from fewstep.methods.base import LoRA
from fewstep.methods.diffusion import expand
from fewstep.methods.schedules import RectifiedFlow
from fewstep.orchestrator.errors import BadInput
from fewstep.orchestrator.evaluation.system import System
from fewstep.orchestrator.planning.preflight import preflight
from fewstep.orchestrator.recipe.parsing import parse
from fewstep.orchestrator.recipe.recipe import Recipe
from fewstep.orchestrator.recipe.teacher import TeacherSpec
from fewstep.orchestrator.sampling.solvers import SOLVERS
from fewstep.orchestrator.students.pipeline import write
from fewstep.orchestrator.teachers.load import load
from fewstep.orchestrator.teachers.teacher import Teacher
from tests.support import tiny
from tests.support.families import KINDS
from tests.support.students import evaluator, teacher_path, untrained

NEW = ("alpha", "sigma", "dit", "labelled", "unconditional")
GUIDED = [(kind, 3.0) for kind in NEW if KINDS[kind].is_guided]
RAW = {"clean_caption": False, "use_resolution_binning": False, "height": 32, "width": 32}


@dataclass(frozen=True)
class Place:
    teacher: TeacherSpec
    conditions: Sequence[str]


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Place]:
    folder = tmp_path_factory.mktemp("kinds")
    specs = {
        name: TeacherSpec(folder=str(KINDS[name].teacher(folder)), resolution=KINDS[name].resolution) for name in NEW
    }
    return {name: Place(spec, list(KINDS[name].prompts[:2]) or ["", ""]) for name, spec in specs.items()}


@pytest.fixture(scope="module")
def recipe_data(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Mapping[str, object]]:
    data = tiny.recipe_data(tmp_path_factory.mktemp("data"))
    return {name: section for name, section in data.items() if isinstance(section, dict)}


def recipe_of(data: Mapping[str, Mapping[str, object]], place: Place, folder: Path, **method: object) -> Recipe:
    return parse({**data, "teacher": place.teacher.model_dump(), "method": method, "output": str(folder / "run")})


def generators(count: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(i) for i in range(count)]


@pytest.mark.parametrize(("kind", "guidance_scale"), [*((kind, 1.0) for kind in NEW), *GUIDED])
def test_the_pipeline_itself_makes_the_same_pictures(
    places: Mapping[str, Place], kind: str, guidance_scale: float
) -> None:
    place = places[kind]
    teacher = Teacher(place.teacher)
    noise = torch.stack([torch.randn(teacher.family.latent_shape, generator=each) for each in generators(2)])
    states, _, _ = teacher_path(teacher, "ddim", place.conditions, guidance_scale, noise)
    dataset_kind = load(place.teacher).pipeline
    dataset_kind.scheduler = SOLVERS["ddim"].build(teacher.scheduler, 4)
    told: Mapping[str, Mapping[str, object]] = {
        **dict.fromkeys(("alpha", "sigma"), {"prompt": place.conditions, "latents": noise, **RAW}),
        "dit": {"class_labels": [0, 1], "generator": generators(2)},
        "labelled": {"class_labels": [0, 1], "latents": noise},
        "unconditional": {"batch_size": 2, "generator": generators(2)},
    }
    guidance = {"guidance_scale": guidance_scale} if KINDS[kind].is_guided else {}
    made = dataset_kind(**told[kind], **guidance, num_inference_steps=4, output_type="pt").images
    torch.testing.assert_close(teacher.decode(states[:, -1]), torch.as_tensor(made), atol=1e-5, rtol=0)


@pytest.mark.parametrize("kind", ["alpha", "dit", "unconditional"])
def test_an_untrained_students_pipeline_makes_the_teachers_pictures(
    places: Mapping[str, Place], recipe_data: Mapping[str, Mapping[str, object]], kind: str, tmp_path: Path
) -> None:
    recipe = recipe_of(recipe_data, places[kind], tmp_path, name="dmd", guidance_scale=1.0)
    write(recipe, untrained(recipe, tmp_path, guidance_input=False), tmp_path / "student")
    made = evaluator(recipe, tmp_path / "student", places[kind].conditions)
    student, teacher = (
        made.sample(System(name, sampler, 1, 1.0), range(2))
        for name, sampler in (("student", "LCMScheduler"), ("teacher", "ddim"))
    )
    torch.testing.assert_close(student, teacher, atol=1e-4, rtol=0)


def test_a_student_in_training_forgets_no_class(places: Mapping[str, Place]) -> None:
    network = Teacher(places["dit"].teacher).network.copy().train()
    x, t = torch.zeros(64, *tiny.LATENT), torch.full((64,), 500.0)
    told = network(x, t, {"class": torch.nn.functional.one_hot(torch.full((64,), 3), 1001).float()})
    assert torch.equal(told, told[:1].expand_as(told))


def test_adapters_load_into_the_stock_model_by_peft(places: Mapping[str, Place], tmp_path: Path) -> None:
    teacher = Teacher(places["alpha"].teacher)
    network = teacher.network.with_lora(LoRA(2))
    weights = [weight for weight in network.parameters() if weight.requires_grad]
    for weight in weights:
        torch.nn.init.normal_(weight, std=0.1)
    teacher.pipeline.register_modules(transformer=network.model)
    teacher.family.save_lora(tmp_path)
    dataset_kind = PixArtAlphaPipeline.from_pretrained(places["alpha"].teacher.folder)
    loaded = PeftModel.from_pretrained(dataset_kind.transformer, tmp_path)
    cond, x, t = teacher.encode(["a cat"]), torch.randn(1, *tiny.LATENT), torch.tensor([500.0])
    expected = network(x, t, cond)
    dataset_kind.transformer = loaded.merge_and_unload()
    torch.testing.assert_close(type(network)(dataset_kind.transformer)(x, t, cond), expected, atol=1e-4, rtol=0)
    network.merge_lora()
    torch.testing.assert_close(network(x, t, cond), expected, atol=1e-4, rtol=0)
    assert not [name for name, _ in network.named_parameters() if "lora" in name]


@pytest.mark.parametrize(
    ("kind", "method", "says"),
    [
        ("unconditional", {"name": "lcm-lora"}, "cannot be guided"),
        ("unconditional", {"name": "tcd", "guidance_scale": (1.0, 1.0)}, "takes no eta"),
        ("dit", {"name": "tcd"}, "takes no eta"),
        ("alpha", {"name": "instaflow"}, "cannot take one step on straight paths"),
        ("sigma", {"name": "lcm"}, "cannot take the guidance scale as an input"),
        ("dit", {"name": "dmd", "guidance_scale": 1.0}, "trajectories.prompts is missing"),
    ],
)
def test_what_cannot_be_is_said_before_anything_is_sampled(
    places: Mapping[str, Place],
    recipe_data: Mapping[str, Mapping[str, object]],
    kind: str,
    method: dict[str, object],
    says: str,
    tmp_path: Path,
) -> None:
    data = {name: dict(section) for name, section in recipe_data.items()}
    if not KINDS[kind].is_guided:
        data["trajectories"]["guidance_scale"] = data["evaluation"]["guidance_scale"] = 1.0
    if says.startswith("trajectories.prompts"):
        data["trajectories"]["prompts"] = ""
    with pytest.raises(BadInput, match=says):
        preflight(recipe_of(data, places[kind], tmp_path, **method), Teacher(places[kind].teacher))


def test_words_mean_nothing_to_an_unconditional_teacher(places: Mapping[str, Place]) -> None:
    with pytest.raises(BadInput, match="prompts: 'a cat' means nothing to an unconditional teacher"):
        Teacher(places["unconditional"].teacher).encode(["", "a cat"])


def test_a_ddim_pipeline_is_one_of_ddpm_that_keeps_its_students_scheduler(tmp_path: Path) -> None:
    DDIMPipeline(tiny.plain_unet(), tiny.scheduler()).save_pretrained(tmp_path)
    teacher = Teacher(TeacherSpec(folder=str(tmp_path)))
    assert type(teacher.pipeline) is DDPMPipeline and teacher.card.prediction == "v_prediction"


@pytest.mark.parametrize(
    ("unet", "says"),
    [({"num_class_embeds": 3}, "save it with fewstep's ClassConditionalPipeline"), ({"out_channels": 6}, "6 channels")],
)
def test_a_unet_that_its_pipeline_cannot_sample_is_refused(unet: dict[str, object], says: str, tmp_path: Path) -> None:
    DDPMPipeline(tiny.plain_unet(**unet), tiny.scheduler()).save_pretrained(tmp_path)
    with pytest.raises(BadInput, match=says):
        Teacher(TeacherSpec(folder=str(tmp_path)))


@pytest.mark.parametrize("prediction", ["epsilon", "sample", "v_prediction"])
@pytest.mark.parametrize("is_zero_snr", [False, True])
@pytest.mark.parametrize("scheduler", ["DDPMScheduler", "DDIMScheduler", "EulerDiscreteScheduler", "PNDMScheduler"])
def test_noise_levels_and_prediction_are_those_of_the_teachers_scheduler(
    scheduler: str, is_zero_snr: bool, prediction: str, tmp_path: Path
) -> None:
    told: dict = {"beta_schedule": "scaled_linear", "beta_start": 0.001, "prediction_type": prediction}
    if scheduler != "PNDMScheduler":
        told["rescale_betas_zero_snr"] = is_zero_snr
    elif is_zero_snr:
        pytest.skip("PNDM has no zero terminal SNR")
    own = getattr(diffusers, scheduler)(**told)
    DDPMPipeline(tiny.plain_unet(), own).save_pretrained(tmp_path)
    teacher = Teacher(TeacherSpec(folder=str(tmp_path)))
    assert teacher.prediction == prediction
    t = torch.tensor([0.0, 500.0, 998.0, 999.0])
    levels = own.alphas_cumprod[t.long()]
    # Euler's puts 2^-24 for the zero that it would divide by.
    torch.testing.assert_close(teacher.schedule.alpha(t) ** 2, levels, atol=1e-7, rtol=1e-5)


def test_straight_paths_are_those_of_the_teachers_scheduler(tmp_path: Path) -> None:
    DDPMPipeline(tiny.plain_unet(), diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0)).save_pretrained(tmp_path)
    teacher = Teacher(TeacherSpec(folder=str(tmp_path)))
    assert teacher.schedule == RectifiedFlow(3.0) and teacher.prediction == "flow"
    x0, eps = torch.full((2, 3, 8, 8), 2.0), torch.ones(2, 3, 8, 8)
    t = teacher.schedule.at(torch.tensor([0.25, 0.75]))
    x_t: Tensor = teacher.pipeline.scheduler.scale_noise(x0, teacher.pipeline.scheduler.timesteps[[750, 250]], eps)
    torch.testing.assert_close(x_t, expand(1 - t, x0) * x0 + expand(t, x0) * eps, atol=1e-5, rtol=0)


def test_noise_levels_that_are_unknown_are_refused(tmp_path: Path) -> None:
    DDPMPipeline(tiny.plain_unet(), EDMEulerScheduler()).save_pretrained(tmp_path)  # pyright: ignore
    with pytest.raises(BadInput, match="EDMEulerScheduler has neither betas nor a shift"):
        _ = Teacher(TeacherSpec(folder=str(tmp_path))).card


def test_a_folders_own_code_is_never_run(tmp_path: Path) -> None:
    place = tiny.labelled_teacher(tmp_path)
    (place / "pipeline.py").write_text("raise AssertionError('a folder is data')\n")
    teacher = Teacher(TeacherSpec(folder=str(place)))
    assert type(teacher.pipeline).__module__.startswith("fewstep.")
    with pytest.raises(ValueError, match="trust_remote_code"):  # nor by diffusers
        DiffusionPipeline.from_pretrained(place, custom_pipeline=str(place))


@pytest.mark.parametrize("revision", ["", "main", "fp16"])
def test_a_revision_that_may_move_is_refused(recipe_data: Mapping[str, object], revision: str) -> None:
    with pytest.raises(BadInput, match=f"teacher: revision '{revision}' is no commit of someone/something"):
        teacher = {"hub": "someone/something", "revision": revision}
        parse({**recipe_data, "teacher": teacher, "method": {"name": "lcm"}, "output": "run"})


def test_a_teacher_is_loaded_from_the_hub_at_its_commit(
    places: Mapping[str, Place], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Offline, from the hub's own cache."""
    commit = "0123456789abcdef0123456789abcdef01234567"
    cached = tmp_path / "models--someone--something" / "snapshots" / commit
    shutil.copytree(places["unconditional"].teacher.folder, cached)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.delenv("HF_XET_HIGH_PERFORMANCE", raising=False)
    card = Teacher(TeacherSpec(hub="someone/something", revision=commit)).card
    assert card.revision == commit and card.pipeline == "DDPMPipeline"
    assert os.environ["HF_XET_HIGH_PERFORMANCE"] == "1"
    with pytest.raises(BadInput, match="teacher: someone/something cannot be loaded"):
        Teacher(TeacherSpec(hub="someone/something", revision=commit[::-1]))
