"""A student beside its teacher, for whoever wants to see it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner, Result

from fewstep.orchestrator.cli.app import BAD_INPUT
from fewstep.orchestrator.cli.main import app
from fewstep.orchestrator.evaluation.results import UNJUDGED
from fewstep.orchestrator.families.usage import USAGES
from fewstep.orchestrator.recipe.parsing import parse
from fewstep.orchestrator.reports.licence import Terms
from fewstep.orchestrator.reports.model_card import CardFacts, write_card
from fewstep.orchestrator.students.pipeline import write
from fewstep.orchestrator.workflow.side_by_side import find_student
from tests.support import tiny
from tests.support.students import untrained, untrained_lora

TEXT = USAGES["StableDiffusionPipeline"]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run's output, with an exported student that answers as its teacher does."""
    folder = tmp_path_factory.mktemp("run")
    recipe = parse(tiny.recipe_data(folder))
    write(recipe, untrained(recipe, folder), folder / "student")
    write_card(CardFacts(recipe, TEXT, UNJUDGED, "a cat", Terms(), {}), folder / "student", folder)
    return folder


def fewstep(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["sample", *arguments])


def test_one_picture_shows_teacher_and_student_from_the_same_noise(run: Path, tmp_path: Path) -> None:
    paint = (str(run), "a cat", "a dog", "--steps", "2", "--guidance-scale", "1", "--json", "--out")
    done = fewstep(*paint, str(tmp_path / "one.png"))
    assert done.exit_code == 0, done.output
    facts = json.loads(done.stdout)
    assert (facts["steps"], facts["guidance_scale"], facts["seed"]) == (2, 1.0, 0)
    assert facts["teacher"] == str(run / "teacher")
    with Image.open(tmp_path / "one.png") as picture:
        assert picture.width > 2 * 96 and picture.height > 3 * 96  # two prompts; teacher at many, at few, student
    first = (tmp_path / "one.png").read_bytes()
    assert fewstep(*paint, str(tmp_path / "again.png")).exit_code == 0
    assert (tmp_path / "again.png").read_bytes() == first
    assert fewstep(*paint, str(tmp_path / "other.png"), "--seed", "1").exit_code == 0
    assert (tmp_path / "other.png").read_bytes() != first


def test_a_student_is_found_in_its_own_folder_and_in_its_run(run: Path) -> None:
    assert find_student(str(run)) == find_student(str(run / "student"))


def test_a_teacher_that_has_moved_is_asked_for(run: Path, tmp_path: Path) -> None:
    shutil.copytree(run / "student", tmp_path / "student")
    moved = shutil.copytree(run / "teacher", tmp_path / "teacher")
    recipe = (tmp_path / "student" / "recipe.yaml").read_text().replace(str(run / "teacher"), "/nowhere")
    (tmp_path / "student" / "recipe.yaml").write_text(recipe)
    out = ("--steps", "1", "--out", str(tmp_path / "x.png"))
    refused = fewstep(str(tmp_path / "student"), "a cat", *out)
    assert refused.exit_code == BAD_INPUT and "--teacher: /nowhere is no diffusers pipeline" in refused.stderr
    assert fewstep(str(tmp_path / "student"), "a cat", *out, "--teacher", str(moved)).exit_code == 0


def test_a_folder_that_holds_no_student_is_refused(run: Path) -> None:
    refused = fewstep(str(run / "teacher"), "a cat")
    assert refused.exit_code == BAD_INPUT and "is no exported student" in refused.stderr


def test_adapters_alone_are_sampled_in_the_teachers_pipeline_under_its_safety_checker(tmp_path: Path) -> None:
    method = {"name": "lcm-lora", "lora_rank": 2}
    recipe = parse(tiny.recipe_data(tmp_path) | {"method": method, "export": {"merged": False}})
    write(recipe, untrained_lora(recipe, tmp_path), tmp_path / "student")
    write_card(
        CardFacts(recipe, TEXT, UNJUDGED, "a cat", Terms(), {}),
        tmp_path / "student",
        tmp_path,
    )
    seen = []
    for finds_fault in (False, True):
        tiny.add_safety_checker(Path(recipe.teacher.folder), finds_fault=finds_fault)
        assert fewstep(str(tmp_path), "a cat", "--steps", "1", "--out", str(tmp_path / "x.png")).exit_code == 0
        with Image.open(tmp_path / "x.png") as picture:
            seen.append(np.asarray(picture)[-108:-12, -108:-12].any())
    assert seen == [True, False]


def test_pictures_that_the_safety_checker_finds_fault_with_are_black(run: Path, tmp_path: Path) -> None:
    student = shutil.copytree(run / "student", tmp_path / "student")
    tiny.add_safety_checker(student, finds_fault=True)
    assert fewstep(str(student), "a cat", "--steps", "1", "--out", str(tmp_path / "x.png")).exit_code == 0
    with Image.open(tmp_path / "x.png") as picture:
        last = np.asarray(picture)[-108:-12, -108:-12]  # 96 pixels, within two gaps
    assert not last.any()
