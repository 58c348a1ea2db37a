"""A teacher of one's own, of any shape; and a teacher that is compiled."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from fewstep.orchestrator.errors import BadInput
from fewstep.orchestrator.evaluation.system import System
from fewstep.orchestrator.planning.preflight import preflight
from fewstep.orchestrator.recipe.parsing import parse
from fewstep.orchestrator.recipe.recipe import Recipe
from fewstep.orchestrator.recipe.teacher import TeacherSpec
from fewstep.orchestrator.sampling.solvers import SOLVERS
from fewstep.orchestrator.students.pipeline import write
from fewstep.orchestrator.students.student import student_network, trained_of
from fewstep.orchestrator.teachers.load import load
from fewstep.orchestrator.teachers.revision import factory_hash
from fewstep.orchestrator.teachers.teacher import Teacher
from tests.support import tiny
from tests.support.data_sets import new_commit_log
from tests.support.own_models import points
from tests.support.source import ROOT
from tests.support.students import evaluator, teacher_path, untrained

README = ROOT / "README.md"
POINTS, VIDEO = "tests.support.own_models:points", "tests.support.own_models:video"


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Recipe:
    """Of the points."""
    folder = tmp_path_factory.mktemp("points")
    told = {name: dict(section) for name, section in tiny.recipe_data(folder).items() if isinstance(section, dict)}
    (folder / "sides.txt").write_text("left\nright\n")
    told["trajectories"] |= {"prompts": str(folder / "sides.txt")}
    told["method"] = {"name": "dmd", "regression_weight": 0.0}
    del told["evaluation"]
    return parse({**told, "teacher": {"factory": POINTS}, "output": str(folder / "run")})


def altered(recipe: Recipe, **sections: Mapping[str, object]) -> Recipe:
    return parse({**recipe.resolved(), **sections})


@pytest.mark.parametrize(("factory", "solver"), [(POINTS, "ddim"), (VIDEO, "flow-match-euler")])
@pytest.mark.parametrize("guidance_scale", [1.0, 3.0])
def test_a_saved_pipeline_makes_what_the_teacher_makes(
    factory: str, solver: str, guidance_scale: float, tmp_path: Path
) -> None:
    teacher, prompts = Teacher(TeacherSpec(factory=factory)), ["left", "right"]
    noise = torch.randn(2, *teacher.family.latent_shape, generator=torch.Generator().manual_seed(0))
    states, _, _ = teacher_path(teacher, solver, prompts, guidance_scale, noise)
    teacher.pipeline.save_pretrained(tmp_path)
    loaded = load(TeacherSpec(folder=str(tmp_path)))
    loaded.pipeline.scheduler = SOLVERS[solver].build(teacher.scheduler, 4)
    made = loaded.pipeline(
        **loaded.call_arguments(prompts, "", 4, guidance_scale), **loaded.noise_arguments(noise, (), ())
    ).images
    torch.testing.assert_close(made, states[:, -1], atol=1e-5, rtol=0)


def test_a_plan_knows_the_weights_and_the_module_that_made_them() -> None:
    teacher = Teacher(TeacherSpec(factory=POINTS))
    assert teacher.card == Teacher(TeacherSpec(factory=POINTS)).card and not teacher.card.has_pictures
    before = teacher.card.revision
    with torch.no_grad():
        next(teacher.network.parameters())[0, 0] += 1
    assert factory_hash(POINTS, teacher.network) != before
    assert Teacher(TeacherSpec(factory="tests.support.own_models:seen_points")).card.has_pictures


def test_what_can_be_seen_can_be_judged(recipe: Recipe, tmp_path: Path) -> None:
    recipe = altered(recipe, teacher={"factory": "tests.support.own_models:seen_points"})
    write(recipe, untrained(recipe, tmp_path, guidance_input=False), tmp_path / "student")
    made = evaluator(recipe, tmp_path / "student", ["left", "right"])
    student, teacher = (
        made.sample(System(name, sampler, 1, 1.0), range(2))
        for name, sampler in (("student", "LCMScheduler"), ("teacher", "ddim"))
    )
    assert student.shape == (2, 3, 2, 2)
    torch.testing.assert_close(student, teacher, atol=1e-4, rtol=0)


def test_the_readmes_example_is_a_teacher(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    example = next(block for block in README.read_text().split("```python\n") if "def points():" in block)
    weights = tmp_path / "points.safetensors"
    save_file(points().network.state_dict(), weights)
    code = example.partition("```")[0].replace("/models/points.safetensors", str(weights))
    (tmp_path / "mine.py").write_text(f"from tests.support.own_models import Points\n{code}")
    monkeypatch.syspath_prepend(tmp_path)
    mine, ours = (Teacher(TeacherSpec(factory=factory)) for factory in ("mine:points", POINTS))
    cond, x, t = ours.encode(["left", ""]), torch.randn(2, 2), torch.tensor([900.0, 10.0])
    assert mine.encode(["left", ""])["side"].equal(cond["side"])
    torch.testing.assert_close(mine.network(x, t, cond), ours.network(x, t, cond))


@pytest.mark.parametrize(
    ("factory", "says"),
    [
        ("tests.nowhere:points", "tests.nowhere:points cannot be imported"),
        ("tests.support.own_models:nobody", "tests.support.own_models:nobody cannot be imported"),
        ("tests.support.own_models:nonsense", "returns a Points; it has to return an OwnModel"),
    ],
)
def test_a_factory_that_makes_no_model_is_refused(factory: str, says: str) -> None:
    with pytest.raises(BadInput, match=f"teacher.factory: .*{says}"):
        Teacher(TeacherSpec(factory=factory))


@pytest.mark.parametrize(
    ("teacher", "says"),
    [
        ({"factory": "points"}, "factory 'points' is no function; write it like package.module:function"),
        ({"factory": POINTS, "folder": "x"}, "needs one of"),
        ({"factory": POINTS, "revision": "x"}, "revision 'x' is for a `hub` id"),
    ],
)
def test_a_recipe_that_names_no_one_teacher_is_refused(recipe: Recipe, teacher: dict[str, str], says: str) -> None:
    with pytest.raises(BadInput, match=f"teacher: .*{says}"):
        altered(recipe, teacher=teacher)


def test_conditions_that_cannot_be_stored_are_refused() -> None:
    with pytest.raises(BadInput, match=r"encode gives 'side' as \[2\] for 2 conditions"):
        Teacher(TeacherSpec(factory="tests.support.own_models:flat")).encode(["left", ""])


def test_nobody_judges_what_cannot_be_seen_while_training(recipe: Recipe) -> None:
    told = altered(recipe, training={**dict(recipe.training), "evaluate_every": 10})
    with pytest.raises(BadInput, match="training.evaluate_every: this teacher's samples are no pictures"):
        preflight(told, Teacher(told.teacher))


@pytest.mark.parametrize(
    ("method", "says"),
    [
        ({"name": "add"}, "add has a loss of pictures, and this teacher's samples are none"),
        ({"name": "lcm"}, "cannot take the guidance scale as an input"),
    ],
)
def test_a_method_that_the_model_has_no_place_for_is_refused(
    recipe: Recipe, method: dict[str, object], says: str
) -> None:
    with pytest.raises(BadInput, match=says):
        preflight(altered(recipe, method=method), Teacher(recipe.teacher))


@pytest.fixture(scope="module")
def compiled(recipe: Recipe) -> Recipe:
    return altered(recipe, teacher={"factory": POINTS, "compile": True})


def test_what_a_compiled_teacher_samples_is_another_data_set(recipe: Recipe, compiled: Recipe, tmp_path: Path) -> None:
    quick, slow = (new_commit_log(told, tmp_path).plan for told in (compiled, recipe))
    assert quick.differences(slow) == ["teacher"] and quick.hash != slow.hash


def test_a_compiled_teacher_says_what_it_says_otherwise_and_its_students_are_not_compiled(
    recipe: Recipe, compiled: Recipe
) -> None:
    quick, slow = Teacher(compiled.teacher), Teacher(recipe.teacher)
    cond, x, t = slow.encode(["left", ""]), torch.randn(2, 2), torch.tensor([900.0, 10.0])
    with torch.no_grad():
        torch.testing.assert_close(quick.network(x, t, cond), slow.network(x, t, cond), atol=1e-5, rtol=0)
    (round,) = recipe.method.build().rounds()
    student = student_network(quick.network, trained_of(round, "student"))
    student(x, t, cond).sum().backward()
    assert student._compiled_call_impl is None and quick.network._compiled_call_impl is not None


def test_a_solver_of_many_batch_sizes_is_not_compiled(compiled: Recipe) -> None:
    told = altered(compiled, trajectories={**dict(compiled.trajectories), "solver": "rk45"})
    with pytest.raises(BadInput, match="teacher.compile: rk45 evaluates batches of ever other sizes"):
        preflight(told, Teacher(told.teacher))


@pytest.mark.parametrize(("factory", "count"), [("seen_points", 0), ("clamped_points", 1), ("detached_points", 1)])
def test_a_decode_whose_gradient_vanishes_out_of_range_is_noticed(factory: str, count: int) -> None:
    warnings = Teacher(TeacherSpec(factory=f"tests.support.own_models:{factory}")).family.warnings()
    assert len(warnings) == count and all("its decode clamps" in warning for warning in warnings)
