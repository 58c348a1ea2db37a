"""A recipe that only samples its teacher needs no section `training`; what trains or judges a student refuses it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from fewstep.orchestrator.cli.app import DONE
from fewstep.orchestrator.errors import BadInput
from fewstep.orchestrator.recipe.identity import recipe_hash
from fewstep.orchestrator.recipe.parsing import load, parse, vary
from fewstep.orchestrator.runs.run import Run
from tests.support import tiny
from tests.support.command import fewstep, refused

SECTION = "training={steps: 4, batch_size: 4}"


@pytest.fixture(scope="module")
def untrained(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A recipe that says what the teacher samples, and nothing of a student."""
    folder = tmp_path_factory.mktemp("untrained")
    data = tiny.recipe_data(folder)
    del data["training"], data["evaluation"]
    (folder / "recipe.yaml").write_text(yaml.safe_dump(data))
    return str(folder / "recipe.yaml")


@pytest.mark.parametrize("verb", ["run", "train", "export", "evaluate", "search"])
def test_what_needs_a_student_names_the_section_and_the_mend(untrained: str, tmp_path: Path, verb: str) -> None:
    result = fewstep(verb, untrained, f"output={tmp_path / 'run'}")
    refused(result, "training is missing", "give training.steps=1000")
    assert not (tmp_path / "run").exists()


def test_a_comparison_and_a_job_name_it_too(untrained: str, tmp_path: Path) -> None:
    refused(fewstep("compare", untrained, "--output", str(tmp_path / "compared")), "training is missing")
    assert not (tmp_path / "compared").exists()
    refused(fewstep("submit", "train", untrained, "--cluster", "local"), "training is missing")


def test_a_section_without_its_steps_is_still_refused(untrained: str) -> None:
    refused(fewstep("generate", untrained, "training.seed=3"), "training.steps is missing")
    refused(fewstep("generate", untrained, "training.steps=0"), "training.steps", "greater than 0")


def test_as_plain_data_the_section_is_left_out_and_comes_back_so(untrained: str) -> None:
    recipe = load(untrained, ["resources.workers=3"])  # which would not divide the batch of a training
    assert not recipe.has_training and "training" not in recipe.resolved()
    assert parse(recipe.resolved()).resolved() == recipe.resolved()
    assert not vary(recipe, {"trajectories.seed": 8}).has_training


def test_offline_a_plan_tells_what_is_sampled_and_nothing_of_training_workers(untrained: str) -> None:
    result = fewstep("plan", untrained, "--offline", "--json")
    assert result.exit_code == DONE, result.output
    facts = json.loads(result.stdout)
    assert facts["rows"] == 20 and "worker_memory_gb" not in facts


@pytest.mark.usefixtures("cluster")
def test_its_data_is_generated_and_then_trained_on(untrained: str, tmp_path: Path) -> None:
    output = f"output={tmp_path / 'run'}"
    dry = fewstep("generate", untrained, output, "--dry-run", "--json")
    assert dry.exit_code == DONE, dry.output
    assert json.loads(dry.stdout)["committed"] == 0 and "worker_memory_gb" not in json.loads(dry.stdout)

    result = fewstep("generate", untrained, output, "--json")
    assert result.exit_code == DONE, result.output
    assert json.loads(result.stdout)["trajectories"]["rows"] == 20

    run = Run(trained := load(untrained, [output, SECTION]))  # the same run, now with a section
    run.record("stages", "train", 1.0)
    assert run.facts["recipe"] == recipe_hash(trained)
    with pytest.raises(BadInput, match="belongs to another recipe"):
        Run(load(untrained, [output]))
