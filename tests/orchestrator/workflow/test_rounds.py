"""Methods of several rounds, networks and sources from end to end on the tiny teacher: Ray Train, DeepSpeed, export."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from diffusers import DiffusionPipeline

from fewstep.orchestrator.datasets.commit_log import open_commit_log
from fewstep.orchestrator.observability import metrics
from fewstep.orchestrator.recipe.parsing import parse
from fewstep.orchestrator.workflow import stages
from tests.support import tiny


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> dict:
    return dict(tiny.recipe_data(tmp_path_factory.mktemp("tiny")))


def train(data: dict, folder: Path, **method: object) -> Path:
    """Generate, train every round, export; the student's folder."""
    recipe = parse(data | {"method": method, "output": str(folder / "run")})
    stages.train(recipe)
    stages.export(recipe)
    return folder / "run" / "student"


def picture(pipeline: DiffusionPipeline, steps: int) -> torch.Tensor:
    pipeline.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(0)
    images = pipeline("a cat", num_inference_steps=steps, guidance_scale=1.0, generator=generator, output_type="pt")
    return images.images  # pyright: ignore[reportAttributeAccessIssue]


@pytest.mark.usefixtures("cluster")
def test_each_reflow_learns_from_pairs_of_the_one_before(data: dict, tmp_path: Path) -> None:
    judged = data | {"training": data["training"] | {"evaluate_every": 2}}
    student = train(judged, tmp_path, name="instaflow", num_inference_steps=4, perceptual_after=2)
    facts = json.loads((student.parent / "run.json").read_text())["manifests"]
    assert list(facts) == ["reflow-1", "distillation"]
    assert facts["reflow-1"]["content_hash"] != facts["distillation"]["content_hash"]
    plans = [open_commit_log(fact["path"]).plan for fact in facts.values()]
    assert [plan.solver for plan in plans] == ["ddim", "flow-match-euler"]
    assert [plan.guidance_scale for plan in plans] == [(6.0, 6.0), (1.5, 1.5)]
    found = [metrics.read(folder / "metrics.jsonl") for folder in sorted((student.parent / "rounds").iterdir())]
    assert [[row["step"] for row in rows if "quality/kid@1" in row] for rows in found] == [[], [2, 4]]
    assert picture(DiffusionPipeline.from_pretrained(student, trust_remote_code=True), 1).isfinite().all()


@pytest.mark.usefixtures("cluster")
def test_adversarial_distillation_trains_two_networks_through_two_frozen_ones(data: dict, tmp_path: Path) -> None:
    student = train(data, tmp_path, name="add", student_steps=2)
    rows = [
        json.loads(line) for line in (student.parent / "rounds/1-adversarial/metrics.jsonl").read_text().splitlines()
    ]
    terms = {key for row in rows for key in row if key.startswith("loss/")}
    assert terms == {"loss/discriminator/hinge", "loss/student/adversarial", "loss/student/distillation"}
    assert picture(DiffusionPipeline.from_pretrained(student), 2).isfinite().all()


@pytest.mark.usefixtures("cluster")
def test_an_exported_lora_is_one_that_diffusers_loads(data: dict, tmp_path: Path) -> None:
    student = train(data, tmp_path, name="lcm-lora", teacher_step="stored", skip=250, grid=4, lora_rank=4)
    merged = DiffusionPipeline.from_pretrained(student)
    base = DiffusionPipeline.from_pretrained(data["teacher"]["folder"])
    base.scheduler = type(merged.scheduler).from_config(merged.scheduler.config)
    plain = picture(base, 2)
    base.load_lora_weights(student / "lora")
    torch.testing.assert_close(picture(base, 2), picture(merged, 2), atol=1e-4, rtol=1e-4)
    assert not torch.allclose(picture(base, 2), plain, atol=1e-4)
