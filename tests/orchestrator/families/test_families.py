"""Every kind of teacher from condition to exported student, sampled by stock diffusers."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch

from fewstep.methods.diffusion import with_guidance
from fewstep.orchestrator.errors import BadInput
from fewstep.orchestrator.evaluation.system import System
from fewstep.orchestrator.recipe.parsing import parse
from fewstep.orchestrator.recipe.teacher import TeacherSpec
from fewstep.orchestrator.students.pipeline import write
from fewstep.orchestrator.teachers.teacher import Teacher
from fewstep.orchestrator.workflow import stages
from tests.support import tiny
from tests.support.students import evaluator, untrained

CLASSES = ("0", "1", "2")


@pytest.fixture(scope="module")
def classes(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, object]:
    return tiny.class_recipe_data(tmp_path_factory.mktemp("classes"))


def test_a_class_is_a_condition_and_the_empty_one_is_none(classes: Mapping[str, object]) -> None:
    teacher = Teacher(parse(classes).teacher)
    assert teacher.encode(["2", ""])["class"].tolist() == [[0, 0, 1, 0], [0, 0, 0, 1]]
    assert teacher.card.latent_shape == (1, 8, 8)
    assert teacher.decode(torch.full((1, 1, 8, 8), 0.5)).unique().item() == 0.75
    with pytest.raises(BadInput, match="'shirt' is no class; write a number from 0 to 2"):
        teacher.encode(["shirt"])


def test_a_new_guidance_input_changes_nothing(classes: Mapping[str, object]) -> None:
    teacher = Teacher(parse(classes).teacher)
    x, t = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(0)), torch.tensor([999.0, 10.0])
    cond = teacher.encode(["0", "1"])
    student = teacher.network.with_guidance_input()
    told = student(x, t, with_guidance(cond, torch.tensor([1.0, 5.0])))
    assert torch.allclose(told, teacher.network(x, t, cond), atol=1e-6)


def test_an_untrained_students_pipeline_makes_the_teachers_pictures(
    classes: Mapping[str, object], tmp_path: Path
) -> None:
    recipe = parse({**classes, "method": {"name": "progressive", "teacher_steps": 8, "student_steps": 4}})
    write(recipe, untrained(recipe, tmp_path, guidance_input=False), tmp_path / "student")
    made = evaluator(recipe, tmp_path / "student", CLASSES)
    student, teacher = (
        made.sample(System(name, sampler, 4, 1.0), range(3))
        for name, sampler in (("student", "DDIMScheduler"), ("teacher", "ddim"))
    )
    assert student.shape == (3, 3, 8, 8)
    assert torch.allclose(student, teacher, atol=1e-5)


def test_the_guidance_that_a_student_is_called_with_reaches_its_network(
    classes: Mapping[str, object], tmp_path: Path
) -> None:
    recipe = parse(classes)
    result = untrained(recipe, tmp_path)
    write(recipe, result, tmp_path / "student")
    loaded = Teacher(TeacherSpec(folder=str(tmp_path / "student")))
    torch.nn.init.normal_(loaded.pipeline.unet.time_embedding.cond_proj.weight)
    loaded.pipeline.save_pretrained(tmp_path / "told")
    made = evaluator(recipe, tmp_path / "told", CLASSES)
    one, other = (made.sample(System("student", "LCMScheduler", 1, w), range(3)) for w in (1.0, 4.0))
    assert (one - other).abs().max() > 1e-3


@pytest.mark.usefixtures("cluster")
def test_a_class_conditional_teacher_is_distilled_from_end_to_end(
    classes: Mapping[str, object], tmp_path: Path
) -> None:
    method = {"name": "add", "student_steps": 1}
    stages.run(parse({**classes, "method": method, "output": str(tmp_path / "run")}))
    rows = json.loads((tmp_path / "run" / "evaluation" / "metrics.json").read_text())
    assert {(row["system"], row["steps"]) for row in rows} >= {("student", 1), ("teacher", 1), ("teacher", 4)}
    assert "trust_remote_code=True" in (tmp_path / "run" / "student" / "README.md").read_text()
