"""The space of a search: what it holds, how Optuna reads it, and what is refused with one sentence."""

from __future__ import annotations

from pathlib import Path

import optuna
import pytest
import yaml
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from typer.testing import CliRunner

from fewstep.methods import METHODS
from fewstep.methods.search_space import Choice, LogUniform
from fewstep.orchestrator.cli.app import BAD_INPUT
from fewstep.orchestrator.cli.main import app
from fewstep.orchestrator.errors import BadInput
from fewstep.orchestrator.recipe.parsing import load, relative_to, vary
from fewstep.orchestrator.recipe.recipe import Recipe
from fewstep.orchestrator.search.driver import check_search
from fewstep.orchestrator.search.objectives import Budget, objectives_of, target_of
from fewstep.orchestrator.search.space import changes_of, distributions, params_of, space_of
from fewstep.orchestrator.search.tune import concurrency
from tests.support import tiny


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny recipe that could be searched, and its teacher."""
    folder = tmp_path_factory.mktemp("recipe")
    data = tiny.recipe_data(folder)
    data["method"] = {"name": "lcm", "teacher_step": "stored", "skip": 250, "grid": 4}
    data["search"] = tiny.search_data(folder)
    (folder / "recipe.yaml").write_text(yaml.safe_dump(data))
    return folder


def told(folder: Path, *overrides: str) -> Recipe:
    return load(str(folder / "recipe.yaml"), overrides)


def test_the_declared_space_is_narrowed_and_widened(folder: Path) -> None:
    rate = "{low: 1e-5, high: 1e-3, log: true}"
    recipe = told(folder, "search.space.method.skip=[250, 500]", f"search.space.training.learning_rate={rate}")
    space = space_of(recipe)
    assert space["method.skip"] == Choice((250, 500))
    assert space["method.huber_c"] == LogUniform(1e-4, 1e-1)  # as declared
    assert space["training.learning_rate"] == LogUniform(1e-5, 1e-3)


def test_ranges_of_whole_fields_are_of_whole_numbers_and_options_may_be_anything(folder: Path) -> None:
    scales = "[[1.0, 4.0], [3.0, 15.0]]"
    recipe = told(folder, f"search.space={{method.skip: {{low: 250, high: 500}}, method.guidance_scale: {scales}}}")
    space = space_of(recipe)
    found = distributions(recipe, space)
    assert found["method.skip"] == IntDistribution(250, 500)
    assert found["method.huber_c"] == FloatDistribution(1e-4, 1e-1, log=True)
    assert found["method.guidance_scale"] == CategoricalDistribution(["[1.0, 4.0]", "[3.0, 15.0]"])
    trial = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0)).ask(found)
    changes = changes_of(trial.params, space)
    assert changes["method.guidance_scale"] in ([1.0, 4.0], [3.0, 15.0])
    method = vary(recipe, changes).method.build()
    assert isinstance(changes["method.skip"], int) and method.skip == changes["method.skip"]


def test_the_recipe_as_it_is_is_a_point_of_the_space_where_that_holds_it(folder: Path) -> None:
    recipe = told(folder, "search.space={method.skip: [250, 500], method.ema_decay: [0.5]}")
    found = params_of(recipe, space_of(recipe))
    assert found["method.skip"] == "250" and found["method.huber_c"] == 1e-3
    assert "method.ema_decay" not in found


@pytest.mark.parametrize("name", METHODS)
def test_every_declared_space_can_be_searched(folder: Path, name: str) -> None:
    recipe = vary(told(folder), {"method": {"name": name}, "search.space": {}})
    space = space_of(recipe)
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=1))
    for _ in range(5):
        vary(recipe, changes_of(study.ask(distributions(recipe, space)).params, space))


def test_a_recipe_says_the_same_from_another_folder(folder: Path, tmp_path: Path) -> None:
    recipe = told(folder)
    moved = relative_to(recipe, tmp_path)
    assert not Path(moved.teacher.folder).is_absolute()
    (tmp_path / "moved.yaml").write_text(yaml.safe_dump(moved.model_dump(mode="json", exclude_defaults=True)))
    assert load(str(tmp_path / "moved.yaml")) == recipe


def test_goals(folder: Path) -> None:
    assert objectives_of(told(folder)) == ("kid@2",)  # evaluated at 1 and 2, made for 4
    both = told(folder, "search.objectives=[kid@1, training_hours]")
    assert objectives_of(both) == ("kid@1", "training_hours") and target_of(both) == "kid@1"
    budget = Budget(trials=3, hours=0, device_hours=2.0)
    assert [budget.is_spent(2, 99, 1.9), budget.is_spent(3, 0, 0), budget.is_spent(1, 0, 2)] == [False, True, True]


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("search.space={method.hubber_c: [1, 2]}", ["method.hubber_c is not a field", "did you mean 'method.huber_c'"]),
        ("search.space.method.hubber_c=[1, 2]", ["method.hubber_c is not a field", "did you mean 'method.huber_c'"]),
        ("search.space.method.skip=5", ["search.space.method.skip: must be a list of options", "or a range", "got 5"]),
        ("search.space={trajectories.samples: [8, 16]}", ["trajectories.samples is not a field", "training.*"]),
        (
            "search.space={method.huber_c: {low: 0.1, high: 0.001}}",
            ["method.huber_c is empty", "low=0.1", "below"],
        ),
        ("search.space={method.skip: []}", ["search", "method.skip is empty", "at least one option"]),
        ("search.space={method.huber_c: {low: 0, high: 1, log: true}}", ["method.huber_c", "no logarithm"]),
        ("search.space={method.huber_c: {lo: 0, high: 1}}", ["search.space.method.huber_c.low is missing"]),
        ("search.space={method.huber_c: {low: -1, high: 1}}", ["search.space.method.huber_c", "huber_c must be"]),
        ("search.objectives=[fid@4]", ["search.objectives", "no 'fid@4'", "kid@1, kid@2, training_hours"]),
        ("search.objectives=[kid@8]", ["no 'kid@8'", "it gives kid@1, kid@2"]),
        ("search.stop_on=kid@1", ["stop_on", "scheduler"]),
        ("search.scheduler=asha", ["search.scheduler", "training.evaluate_every"]),
        ("search.trials=0", ["search.trials is missing", "budget"]),
        ("search.prompts=''", ["search.prompts is missing"]),
        ("search.searcher=grid", ["search.space.method.huber_c", "a grid has no ranges"]),
        ("search.searcher=annealing", ["search.searcher", "'annealing'"]),
    ],
)
def test_bad_input_is_named_with_the_mend(folder: Path, override: str, says: list[str]) -> None:
    result = CliRunner().invoke(app, ["search", str(folder / "recipe.yaml"), override])
    assert result.exit_code == BAD_INPUT, result.output
    assert result.stderr.count("\n") == 1
    for part in says:
        assert part in result.stderr
    assert not (folder / "run").exists()


def test_an_option_that_the_stored_paths_do_not_hold_is_refused(folder: Path) -> None:
    with pytest.raises(BadInput, match=r"^search.space.method.skip=20: method.skip must be a multiple of"):
        check_search(told(folder, "search.space={}"))


def test_several_objectives_have_no_early_stopping_unless_one_is_named(folder: Path) -> None:
    several = ["search.objectives=[kid@1, kid@2]", "search.scheduler=median", "training.evaluate_every=2"]
    result = CliRunner().invoke(app, ["search", str(folder / "recipe.yaml"), *several])
    assert result.exit_code == BAD_INPUT and "name one of them as stop_on" in result.stderr
    check_search(told(folder, *several, "search.stop_on=kid@2"))


def test_prompts_of_the_result_are_not_those_that_trials_are_chosen_by(folder: Path) -> None:
    shared = f"search.prompts={folder / 'prompts.txt'}"
    result = CliRunner().invoke(app, ["search", str(folder / "recipe.yaml"), shared])
    assert result.exit_code == BAD_INPUT and "is among evaluation.prompts too" in result.stderr


def test_a_trial_that_would_need_other_data_is_refused(folder: Path) -> None:
    method, other = "method={name: instaflow}", "search.space={method.guidance_scale: [2.0, 4.0]}"
    result = CliRunner().invoke(app, ["search", str(folder / "recipe.yaml"), method, other])
    assert result.exit_code == BAD_INPUT, result.output
    assert "search.space.method.guidance_scale" in result.stderr and "all trials share" in result.stderr


@pytest.mark.usefixtures("cluster")
@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (["search.concurrent=2", "resources.workers=2"], "asks for 4 x 1 CPU = 4 CPU, and the cluster has 2 CPU"),
        (["resources.generators=3"], "asks for 3 x 1 CPU = 3 CPU, and the cluster has 2 CPU"),
    ],
)
def test_trials_that_would_wait_for_each_other_forever_are_refused(
    folder: Path, tmp_path: Path, overrides: list[str], says: str
) -> None:
    result = CliRunner().invoke(app, ["search", str(folder / "recipe.yaml"), f"output={tmp_path / 'run'}", *overrides])
    assert result.exit_code == BAD_INPUT, result.output
    assert "search.concurrent=" in result.stderr and says in result.stderr


@pytest.mark.usefixtures("cluster")
def test_as_many_trials_run_at_a_time_as_find_room(folder: Path) -> None:
    assert concurrency(told(folder)) == 2
    assert concurrency(told(folder, "resources.generators=2")) == 1
    assert concurrency(told(folder, "search.concurrent=1")) == 1
