"""Every kind of teacher is trained on, and stock diffusers samples what comes out."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from diffusers import DiffusionPipeline

from tests.training.families import METHODS, PIXELS, TEACHERS

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def students(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All of them, made by one process."""
    folder = tmp_path_factory.mktemp("families")
    command = [sys.executable, "-m", "tests.training.families", str(folder)]
    made = subprocess.run(
        command, cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1", "LOCAL_RANK": "0"}, capture_output=True, text=True
    )
    assert not made.returncode, made.stderr[-3000:]
    return folder


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("family", TEACHERS)
def test_a_student_is_trained_exported_and_sampled_by_stock_diffusers(family: str, method: str, students: Path) -> None:
    teacher, student = (
        DiffusionPipeline.from_pretrained(students / family / place).to("cpu")
        for place in (TEACHERS[family].__name__.removesuffix("_teacher"), f"{family}-{method}/student")
    )
    differences = [
        float((after - before).abs().max())
        for before, after in zip(model(teacher).values(), model(student).values(), strict=True)
        if before.is_floating_point()
    ]
    assert 0 < max(differences) < 0.1
    size = {"height": PIXELS, "width": PIXELS}
    image = student("a cat", **size, num_inference_steps=2, guidance_scale=1.0, output_type="pt").images
    assert image.shape == (1, 3, 32, 32) and bool(image.isfinite().all())
    if method == "lcm-lora":
        (students / family / f"{family}-{method}/student/lora/pytorch_lora_weights.safetensors").stat()


def model(pipeline: DiffusionPipeline) -> dict[str, torch.Tensor]:
    """The weights of what was distilled."""
    return (pipeline.components.get("unet") or pipeline.components["transformer"]).state_dict()
