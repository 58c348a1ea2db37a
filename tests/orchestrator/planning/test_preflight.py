"""What is refused once the teacher is loaded, before anything is sampled."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from fewstep.methods import METHODS
from fewstep.orchestrator.errors import BadInput
from fewstep.orchestrator.planning.preflight import preflight
from fewstep.orchestrator.recipe.parsing import parse
from fewstep.orchestrator.recipe.teacher import TeacherSpec
from fewstep.orchestrator.teachers.teacher import Teacher
from tests.support import tiny


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> dict:
    return dict(tiny.recipe_data(tmp_path_factory.mktemp("tiny")))


def check(data: dict, method: dict[str, object], **training: object) -> None:
    recipe = parse(data | {"method": method, "training": data["training"] | training})
    preflight(recipe, Teacher(recipe.teacher))


@pytest.mark.parametrize("name", ["progressive", "guided", "reflow", "consistency", "lcm", "lcm-lora", "add", "tcd"])
def test_every_method_fits_the_tiny_teacher(data: dict, name: str) -> None:
    check(data, {"name": name})


def test_a_solver_that_cannot_sample_the_teacher_is_refused(data: dict) -> None:
    with pytest.raises(BadInput, match=r"trajectories.solver: pndm divides by alpha"):
        check(data | {"trajectories": data["trajectories"] | {"solver": "pndm"}}, {"name": "lcm"})


@pytest.mark.parametrize("name", ["lcm", "tcd"])
def test_a_skip_that_the_stored_path_does_not_hold_is_refused(data: dict, name: str) -> None:
    stored = {"name": name, "teacher_step": "stored", "grid": 4}
    with pytest.raises(
        BadInput, match=r"method.skip must be a multiple of the stored path's spacing, 1000/4 .* got 20;"
    ):
        check(data, stored | {"skip": 20})
    check(data, stored | {"skip": 500})


@pytest.mark.parametrize("name", ["lcm", "lcm-lora", "tcd"])
def test_stored_paths_that_leave_out_times_of_the_grid_are_refused(data: dict, name: str) -> None:
    stored = {"name": name, "teacher_step": "stored", "skip": 250, "grid": 8}
    with pytest.raises(
        BadInput,
        match=r"^trajectories.num_inference_steps: 4 steps leave out .* a multiple of method.grid=8, or another",
    ):
        check(data, stored)
    longer = data | {"trajectories": data["trajectories"] | {"num_inference_steps": 40}}
    check(longer, stored)


@pytest.mark.parametrize("name", ["lcm", "tcd"])
def test_a_stored_path_that_is_spaced_unevenly_is_refused(data: dict, name: str) -> None:
    stored = {"name": name, "teacher_step": "stored", "skip": 250, "grid": 4}
    for solver in ("ddim", "dpm++", "euler", "heun", "rk45", "unipc"):
        check(data | {"trajectories": data["trajectories"] | {"solver": solver}}, stored)
    with pytest.raises(
        BadInput, match=r"^trajectories.solver: heun-karras does not stop at the 4 even times of method.grid; .*unipc$"
    ):
        check(data | {"trajectories": data["trajectories"] | {"solver": "heun-karras"}}, stored)
    check(data | {"trajectories": data["trajectories"] | {"solver": "heun-karras"}}, {"name": "lcm"})


def test_steps_whose_last_would_leave_noise_are_refused(data: dict) -> None:
    with pytest.raises(BadInput, match=r"method.student_steps: 6 steps through 1000 times would end with noise left"):
        check(data, {"name": "progressive", "teacher_steps": 12, "student_steps": 6})
    check(data, {"name": "progressive", "teacher_steps": 24, "student_steps": 12})


def test_half_precision_is_refused_where_a_student_divides_its_rounding_errors(tmp_path: Path) -> None:
    data: dict = {**tiny.recipe_data(tmp_path), "teacher": {"folder": str(tiny.epsilon_teacher(tmp_path))}}
    half = {"precision": "bfloat16", "zero_stage": 1}
    with pytest.raises(
        BadInput, match=r"training.precision: .* 157 times its .* in bfloat16; set method.start_time=399"
    ):
        check(data, {"name": "dmd"}, **half)
    with pytest.raises(BadInput, match=r"training.precision: .* in bfloat16; set float32"):
        check(data, {"name": "lcm"}, **half)
    check(data, {"name": "dmd"})
    check(data, {"name": "dmd", "start_time": 399}, **half)
    check(data, {"name": "reflow"}, **half)


def test_a_start_that_the_teachers_times_do_not_reach_is_refused(data: dict) -> None:
    with pytest.raises(BadInput, match=r"method.start_time must be below the teacher's 1000 times, got 1099"):
        check(data, {"name": "add", "start_time": 1099})


def test_lora_on_modules_that_are_not_there_is_refused(data: dict) -> None:
    with pytest.raises(BadInput, match=r"method.lora_targets: no module of the teacher is called to_z, but .*to_q"):
        check(data, {"name": "lcm-lora", "lora_targets": ["to_z"]})


def test_adapters_alone_for_a_pipeline_that_loads_none_are_refused(data: dict, tmp_path: Path) -> None:
    alone = data | {"export": {"merged": False}}
    check(alone, {"name": "lcm-lora"})
    with pytest.raises(BadInput, match=r"export.merged: .* guided has a guidance input, which is no adapter"):
        check(alone, {"name": "guided", "lora_rank": 2})
    sigma = alone | {"teacher": {"folder": str(tiny.sigma_teacher(tmp_path))}}
    with pytest.raises(BadInput, match=r"export.merged: a PixArtSigmaPipeline loads no adapters"):
        check(sigma, {"name": "lcm-lora"})


def test_a_feature_network_without_weights_is_refused(data: dict, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"training.features: dinov2:.* cannot be loaded"):
        check(data, {"name": "add"}, features=f"dinov2:{tmp_path}")


@pytest.fixture(scope="module")
def teachers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Teacher]:
    """One of epsilon, one of v that starts at pure noise, one of flow matching."""
    folder = tmp_path_factory.mktemp("teachers")
    places = {"v": tiny.teacher(folder), "epsilon": tiny.teacher(folder / "epsilon"), "flow": tiny.sd3_teacher(folder)}
    file = places["epsilon"] / "scheduler" / "scheduler_config.json"
    other = {"prediction_type": "epsilon", "rescale_betas_zero_snr": False}
    file.write_text(json.dumps(json.loads(file.read_text()) | other))
    return {name: Teacher(TeacherSpec(folder=str(place), resolution=32)) for name, place in places.items()}


def refused(data: dict, teacher: Teacher, method: dict[str, object]) -> str:
    """What is said of a method on a teacher; nothing where it fits."""
    flow = {"solver": "flow-match-euler"} if teacher.prediction == "flow" else {}
    judged = {"solvers": ["flow-match-euler"]} if flow else {}
    sections = {"trajectories": data["trajectories"] | flow, "evaluation": data["evaluation"] | judged}
    try:
        preflight(
            parse(data | sections | {"teacher": teacher.spec.model_dump(), "method": method}), teacher, is_offline=True
        )
    except BadInput as error:
        return str(error)
    return ""


NO_INPUT = "^method: a SD3Transformer2DModel cannot take the guidance scale as an input; "
NEVER = {  # whatever the number of steps
    ("guided", "flow"): NO_INPUT,
    ("lcm", "flow"): NO_INPUT,
    ("tcd", "flow"): "^method: diffusers has no scheduler for strategic sampling of a flow-matching teacher$",
}
SIX = "^method.student_steps: 6 steps through 1000 times would end with noise left in; choose a divisor of 1000$"
HALVINGS = ("guided", "progressive")


@pytest.mark.parametrize("kind", ["epsilon", "v", "flow"])
@pytest.mark.parametrize("name", METHODS)
def test_every_number_of_steps_works_or_is_refused_by_the_mathematics_in_one_sentence(
    data: dict, teachers: dict[str, Teacher], name: str, kind: str
) -> None:
    for steps in (1, 2, 3, 4, 6, 8):
        method = {"name": name, "student_steps": steps}
        method |= {"teacher_steps": 4 * steps} if name in HALVINGS else {}
        method |= {"regression_weight": 0.0} if name == "dmd" else {}
        method |= {"grid": 48} if kind == "flow" and "grid" in METHODS[name].__dataclass_fields__ else {}
        reason = NEVER.get((name, kind), SIX if steps == 6 and name in HALVINGS and kind != "flow" else "^$")
        assert re.search(reason, refused(data, teachers[kind], method)), steps


@pytest.fixture(scope="module")
def unguidable(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict]:
    """A recipe that asks for no guidance, on a teacher of classes alone."""
    data: dict = dict(tiny.class_recipe_data(tmp_path_factory.mktemp("classes")))
    index = Path(data["teacher"]["folder"]) / "model_index.json"
    index.write_text(json.dumps(json.loads(index.read_text()) | {"has_null_class": False}))
    data["trajectories"] |= {"guidance_scale": 1.0}
    data["evaluation"] |= {"guidance_scale": 1.0}
    return data


NO_NULL = "trained without a null condition and cannot be guided; 1, or a range of .1, 1., asks for none"


@pytest.mark.parametrize(
    "method",
    [
        {"name": "guided"},
        {"name": "lcm"},
        {"name": "tcd"},
        {"name": "dmd"},
        {"name": "instaflow"},
        {"name": "add", "guidance_scale": 1.0, "weighting": "nfsd"},
        {"name": "progressive", "guidance_scale": 2.0},
        {"name": "consistency", "guidance_scale": 2.0},
    ],
    ids=lambda method: method["name"],
)
def test_a_guided_method_on_a_teacher_without_a_null_condition_is_refused(unguidable: dict, method: dict) -> None:
    with pytest.raises(BadInput, match=rf"method.guidance_scale: {method['name']} guides .*{NO_NULL}"):
        check(unguidable, method)


def test_guided_trajectories_of_a_teacher_without_a_null_condition_are_refused(unguidable: dict) -> None:
    told = unguidable["trajectories"] | {"guidance_scale": [1.0, 4.0]}
    with pytest.raises(BadInput, match=rf"trajectories.guidance_scale: 1, 4, but .*{NO_NULL}"):
        check(unguidable | {"trajectories": told}, {"name": "progressive"})


def test_what_is_not_guided_fits_a_teacher_without_a_null_condition(unguidable: dict) -> None:
    check(unguidable, {"name": "progressive"})
    check(unguidable, {"name": "dmd", "guidance_scale": 1.0})
    check(unguidable, {"name": "reflow"})


def test_an_epsilon_student_from_pure_noise_is_refused(data: dict, tmp_path: Path) -> None:
    folder = tiny.teacher(tmp_path)
    file = folder / "scheduler" / "scheduler_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"prediction_type": "epsilon"}))
    with pytest.raises(BadInput, match=r"epsilon .*zero terminal SNR"):
        check(data | {"teacher": {"folder": str(folder)}}, {"name": "lcm"})
