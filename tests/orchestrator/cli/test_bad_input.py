"""Bad input gets one clear sentence and exit code 2, before anything heavy starts."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from tests.support import tiny
from tests.support.command import fewstep, refused


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny recipe and its teacher."""
    folder = tmp_path_factory.mktemp("recipe")
    data = tiny.recipe_data(folder)
    data["method"] = {"name": "lcm", "teacher_step": "stored", "skip": 250, "grid": 4}
    (folder / "recipe.yaml").write_text(yaml.safe_dump(data))
    return folder


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("training.step=5", ["training.step is not a known key", "did you mean 'steps'"]),
        ("trainings.steps=5", ["trainings is not a known key", "did you mean 'training'"]),
        ("method.hubber_c=0.1", ["method.hubber_c is not a field of lcm", "did you mean 'huber_c'"]),
        ("training.steps=many", ["training.steps", "valid integer", "'many'"]),
        ("training.learning_rate=-1", ["training.learning_rate", "greater than 0", "-1"]),
        ("teacher.folder=nowhere", ["teacher.folder", "nowhere"]),
        ("teacher.folder=tokenizer", ["teacher.folder", "model_index.json"]),
        ("method.name=lcn", ["method.name", "'lcn'", "did you mean 'lcm'", "progressive"]),
        ("method.student_steps=0", ["student_steps", "at least 1", "0"]),
        ("trajectories.guidance_scale=[5, 2]", ["guidance_scale", "reversed", "[2, 5]"]),
        ("method.guidance_scale=[5, 2]", ["guidance_scale", "reversed"]),
        ("trajectories.solver=euler_ancestral", ["solver", "ddim"]),
        ("trajectories.solver=analytic-dpm", ["solver", "draws noise", "choose one of", "ddim"]),
        ('evaluation.solvers=["analytic-dpm", "ddim"]', ["solvers", "draws noise", "ddim first"]),
        ("trajectories.shard_size=6", ["shard_size", "batch_size=4", "6"]),
        ("training.batch_size=5", ["training.batch_size=5", "resources.workers"]),
        ("trajectories.save=ends", ["trajectories.save", "set trajectories.save=all"]),
        (
            "method={name: progressive, teacher_steps: 48}",
            ["method", "teacher_steps must be student_steps=4 doubled once or more, got 48"],
        ),
        (
            "method={name: guided, teacher_steps: 8, student_steps: 8}",
            ["teacher_steps must be student_steps=8 doubled once or more, got 8"],
        ),
        ("training.steps", ["'training.steps' gives no field a value", "write it as training.steps=100"]),
        ("=100", ["'=100' gives no field a value"]),
        ("evaluation.steps=[1, 4", ["'evaluation.steps=[1, 4'", "not valid YAML"]),
        ("evaluation.steps=4", ["evaluation.steps: must be a list, in brackets, got 4"]),
        ("training=5", ["training: must be a section", "got 5"]),
        ("output=2020-99-99", ["'output=2020-99-99'", "not valid YAML"]),
        ("evaluation.solvers=[]", ["evaluation.solvers: no solver is named"]),
        ("training.learning_rate=.inf", ["training.learning_rate", "finite number", "inf"]),
        ("trajectories.guidance_scale=.nan", ["trajectories.guidance_scale", "finite number"]),
        ("output=", ["output: must be text, got None"]),
        (
            "training.deepspeed={zero_optimization: {round_robin_gradients: true}}",
            ["round_robin", "leave it"],
        ),
        ("export.merged=false", ["export.merged", "lcm trains no adapters", "like lcm-lora"]),
        ("export={merged: false, adapters: true}", ["export.adapters is not a known key"]),
    ],
)
def test_a_wrong_field_is_named_with_the_mend(folder: Path, override: str, says: list[str]) -> None:
    extra = ["resources.workers=2"] if "batch_size=5" in override else []
    refused(fewstep("plan", str(folder / "recipe.yaml"), override, *extra), *says)


def test_an_unknown_recipe_is_met_with_those_that_are_known() -> None:
    refused(fewstep("plan", "emoji-lcn"), "'emoji-lcn'", "did you mean 'emoji-lcm'")


def test_a_recipe_that_is_no_yaml_is_refused(tmp_path: Path) -> None:
    (tmp_path / "broken.yaml").write_text("teacher: [")
    refused(fewstep("plan", str(tmp_path / "broken.yaml")), "not valid YAML")
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00teacher")
    refused(fewstep("plan", str(tmp_path / "binary.yaml")), "binary.yaml is not valid YAML")
    refused(fewstep("plan", str(tmp_path)), str(tmp_path))


def test_an_output_of_another_recipe_is_left_alone_and_the_difference_shown(folder: Path, tmp_path: Path) -> None:
    from fewstep.orchestrator.recipe.parsing import load
    from fewstep.orchestrator.runs.run import Run

    output = f"output={tmp_path / 'run'}"
    Run(load(str(folder / "recipe.yaml"), [output]))
    before = (tmp_path / "run/recipe.yaml").read_bytes()
    result = fewstep("run", str(folder / "recipe.yaml"), output, "training.steps=5")
    refused(result, "belongs to another recipe", "training.steps is 4 there and 5 here")
    assert (tmp_path / "run/recipe.yaml").read_bytes() == before


def test_a_run_that_an_older_version_began_goes_on(folder: Path, tmp_path: Path) -> None:
    from fewstep.orchestrator.recipe.parsing import load
    from fewstep.orchestrator.runs.run import Run

    recipe, file = load(str(folder / "recipe.yaml"), [f"output={tmp_path / 'run'}"]), tmp_path / "run/recipe.yaml"
    Run(recipe)
    recorded = yaml.safe_load(file.read_text())
    del recorded["method"]["times"], recorded["evaluation"]["check"]  # which came since
    file.write_text(yaml.safe_dump(recorded))
    Run(recipe)
    assert yaml.safe_load(file.read_text())["method"]["times"] == "all"


def test_a_run_of_a_method_that_came_to_train_otherwise_does_not_go_on(folder: Path, tmp_path: Path) -> None:
    from fewstep.orchestrator.errors import BadInput
    from fewstep.orchestrator.recipe.parsing import load, parse
    from fewstep.orchestrator.runs.run import Run

    data, run = load(str(folder / "recipe.yaml")).model_dump(), tmp_path / "run"
    recipe = parse({**data, "method": {"name": "add"}, "output": str(run)})
    Run(recipe)
    recorded = yaml.safe_load((run / "recipe.yaml").read_text())
    del recorded["method"]["start_time"]
    (run / "recipe.yaml").write_text(yaml.safe_dump(recorded))
    with pytest.raises(BadInput, match="method.start_time is .absent. there and 0 here"):
        Run(recipe)


def test_the_same_run_may_continue_on_other_resources(folder: Path, tmp_path: Path) -> None:
    from fewstep.orchestrator.recipe.parsing import load
    from fewstep.orchestrator.runs.run import Run

    output = f"output={tmp_path / 'run'}"
    Run(load(str(folder / "recipe.yaml"), [output]))
    Run(load(str(folder / "recipe.yaml"), [output, "resources.generators=2"]))


def test_a_second_driver_is_refused(folder: Path, tmp_path: Path) -> None:
    from fewstep.orchestrator.recipe.parsing import load
    from fewstep.orchestrator.runs.run import Run

    output = f"output={tmp_path / 'run'}"
    with Run(load(str(folder / "recipe.yaml"), [output])).driven():
        refused(fewstep("run", str(folder / "recipe.yaml"), output), "is already working in")


def test_a_folder_with_other_files_is_no_output(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("precious")
    refused(fewstep("run", str(folder / "recipe.yaml"), f"output={tmp_path}"), "no run of fewstep")


@pytest.mark.parametrize("field", ["workers", "generators"])
def test_more_actors_than_the_cluster_could_give_are_refused(folder: Path, tmp_path: Path, cluster, field: str) -> None:
    sizes = [f"resources.{field}=50", "training.batch_size=50"]
    result = fewstep("train", str(folder / "recipe.yaml"), f"output={tmp_path / 'run'}", *sizes)
    refused(result, f"resources.{field}", "50 CPU", "the cluster has 2 CPU")
