"""Every kind of teacher is trained on, and stock diffusers samples what comes out."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from diffusers import DiffusionPipeline

from fewstep.orchestrator.pipelines.own import call_factory as own
from fewstep.orchestrator.recipe.teacher import TeacherSpec
from fewstep.orchestrator.teachers.teacher import Teacher
from tests.support.families import KINDS, METHODS, PIXELS
from tests.support.source import ROOT


@pytest.fixture(scope="module")
def students(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All of them, made by one process."""
    folder = tmp_path_factory.mktemp("families")
    command = [sys.executable, "-m", "tests.support.families", str(folder)]
    made = subprocess.run(
        command, cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1", "LOCAL_RANK": "0"}, capture_output=True, text=True
    )
    assert not made.returncode, made.stderr[-3000:]
    return folder


PIPELINES = [name for name, kind in KINDS.items() if not isinstance(kind.teacher, str)]
FACTORIES = {name: kind.teacher for name, kind in KINDS.items() if isinstance(kind.teacher, str)}
RAW = {"clean_caption": False, "use_resolution_binning": False}
TEACHERS = {name: str(KINDS[name].teacher.__name__).removesuffix("_teacher") for name in PIPELINES}
BRING_CODE = ("labelled", "sd3")  # of its pipeline, of its scheduler
SIZE = {"height": PIXELS, "width": PIXELS}
CALLS: Mapping[str, Mapping[str, object]] = {
    **dict.fromkeys(("sd", "xl", "sd3", "flux"), {"prompt": "a cat", **SIZE}),
    **dict.fromkeys(("alpha", "sigma"), {"prompt": "a cat", **SIZE, **RAW}),
    **dict.fromkeys(("dit", "labelled"), {"class_labels": [2]}),
    "unconditional": {},
}


@pytest.fixture(autouse=True)
def _no_other_pipeline(monkeypatch: pytest.MonkeyPatch) -> None:
    """diffusers 0.42 loads every folder's pipeline.py into one module, and trips over the class of the one before."""
    monkeypatch.delitem(sys.modules, "diffusers_modules.local.pipeline", raising=False)


@pytest.mark.parametrize("family", PIPELINES)
def test_a_teacher_computes_on_its_own_device_alone(family: str, students: Path) -> None:
    """Torch refuses what mixes the CPU with its meta device, as it refuses what mixes the CPU with a GPU."""
    spec = TeacherSpec(folder=str(students / family / TEACHERS[family]), resolution=KINDS[family].resolution)
    teacher, shape = Teacher(spec, "meta"), Teacher(spec).family.latent_shape
    told = Teacher(spec).encode(KINDS[family].prompts[:2] or ["", ""])
    told |= {name: size.expand(2, -1) for name, size in teacher.family.size_conditioning(shape).items()}
    cond = {name: value.to("meta") for name, value in told.items()}
    denoiser, noise = teacher.denoiser(), torch.zeros(2, *shape, device="meta")
    x0 = denoiser(noise, denoiser.schedule.at(torch.ones(2, device="meta")), cond).x0
    again = teacher.latents(teacher.decode(x0), torch.zeros(2, *shape))
    assert (x0.device.type, again.device.type, again.shape) == ("meta", "meta", x0.shape)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("family", PIPELINES)
def test_a_student_is_trained_exported_and_sampled_by_stock_diffusers(family: str, method: str, students: Path) -> None:
    made = students / family / f"{family}-{method}" / "student"
    teacher, student = (
        DiffusionPipeline.from_pretrained(place, **options, trust_remote_code=family in BRING_CODE).to("cpu")
        for place in (students / family / TEACHERS[family], made)
        for options in ({"custom_pipeline": str(place)} if family == "labelled" else {},)
    )
    differences = [
        float((after - before).abs().max())
        for before, after in zip(model(teacher).values(), model(student).values(), strict=True)
        if before.is_floating_point()
    ]
    assert 0 < max(differences) < 0.1
    guidance = {"guidance_scale": 1.0} if KINDS[family].is_guided else {}
    image = torch.as_tensor(student(**CALLS[family], **guidance, num_inference_steps=2, output_type="pt").images)
    pixels = PIXELS if KINDS[family].resolution else 8
    assert image.shape == (1, 3, pixels, pixels) and bool(image.isfinite().all())
    if method == "lcm-lora":
        assert list((made / "lora").glob("*.safetensors"))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("family", FACTORIES)
def test_a_student_of_ones_own_model_is_sampled_by_its_folders_pipeline(
    family: str, method: str, students: Path
) -> None:
    made = students / family / f"{family}-{method}" / "student"
    student = DiffusionPipeline.from_pretrained(made, custom_pipeline=str(made), trust_remote_code=True)
    teacher = own(FACTORIES[family])
    differences = [
        float((after - before).abs().max())
        for before, after in zip(
            teacher.network.state_dict().values(), student.network.network.state_dict().values(), strict=True
        )
    ]
    assert 0 < max(differences) < 0.1
    sampled = student(list(KINDS[family].prompts[:2]), num_inference_steps=2).images
    assert sampled.shape == (2, *teacher.shape) and bool(sampled.isfinite().all())
    if method == "lcm-lora":
        assert list((made / "lora").glob("*.safetensors"))


def model(pipeline: DiffusionPipeline) -> dict[str, torch.Tensor]:
    """The weights of what was distilled."""
    return (pipeline.components.get("unet") or pipeline.components["transformer"]).state_dict()
