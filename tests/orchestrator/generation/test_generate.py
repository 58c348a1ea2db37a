from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

import psutil
import pytest
import ray

from fewstep.orchestrator.datasets.commit_log import CommitLog, open_commit_log
from fewstep.orchestrator.datasets.dataset import Dataset
from fewstep.orchestrator.errors import BadInput
from fewstep.orchestrator.generation.data_sets import generate
from fewstep.orchestrator.generation.repair import repair
from fewstep.orchestrator.recipe.resources import Resources
from tests.support.data_sets import MakeRecipe, fill, new_commit_log

DRIVER = """
import sys, pathlib
from fewstep.orchestrator.generation.data_sets import generate
from fewstep.orchestrator.recipe.recipe import Recipe
generate(Recipe.model_validate_json(pathlib.Path(sys.argv[1]).read_text()), sys.argv[2])
"""

pytestmark = pytest.mark.usefixtures("cluster")


def sampling_actors() -> list[psutil.Process]:
    """The processes of this test's own cluster that sample."""
    children = psutil.Process().children(recursive=True)
    return [child for child in children if child.name().startswith("ray::Sampling")]


def files(commit_log: CommitLog) -> dict[str, str]:
    """What each committed file hashes to."""
    return {name: commit.file.sha256 for name, commit in commit_log.commits()[0].items()}


def test_bytes_are_the_same_with_two_actors_of_which_one_is_killed(
    finished: CommitLog, make_recipe: MakeRecipe, tmp_path: Path
) -> None:
    killed: list[int] = []
    rows: list[float] = []

    def kill_one(step: int, values: Mapping[str, float]) -> None:
        rows.append(values.get("generate/samples", 0))
        if step and not killed:
            killed.append(sampling_actors()[0].pid)
            os.kill(killed[0], signal.SIGKILL)

    made = generate(make_recipe({"generators": 2}), str(tmp_path), kill_one)
    commit_log = open_commit_log(made.url)
    assert killed and made.quarantined == ()
    assert (made.rows, made.shards, sum(rows)) == (20, 3, 20)
    assert files(commit_log) == files(finished)
    assert made.content_hash == finished.newest().content_hash
    assert commit_log.verify().broken == ()


def test_an_interrupted_run_continues_with_what_is_missing(
    finished: CommitLog, make_recipe: MakeRecipe, tmp_path: Path
) -> None:
    def interrupt(step: int, values: Mapping[str, float]) -> None:
        if step:
            raise KeyboardInterrupt

    recipe = make_recipe()
    with pytest.raises(KeyboardInterrupt):
        generate(recipe, str(tmp_path), interrupt)
    commit_log = open_commit_log(str(tmp_path / finished.plan.hash))
    kept = commit_log.commits()[0]
    assert kept and commit_log.versions() == []
    assert psutil.wait_procs(sampling_actors(), timeout=20)[1] == []  # nobody is left behind
    made = generate(recipe, str(tmp_path))
    assert made.content_hash == finished.newest().content_hash
    after = commit_log.commits()[0]
    assert {name: after[name] for name in kept} == kept
    assert generate(recipe, str(tmp_path)) == made


def test_a_killed_driver_is_continued_by_the_same_command(make_recipe: MakeRecipe, tmp_path: Path) -> None:
    address = ray.get_runtime_context().gcs_address
    recipe = make_recipe({"address": address}, samples=300, save="ends", num_inference_steps=8)
    (tmp_path / "recipe.json").write_text(recipe.model_dump_json())
    undisturbed = new_commit_log(recipe, tmp_path / "undisturbed")
    fill(undisturbed)
    driver = subprocess.Popen([sys.executable, "-c", DRIVER, str(tmp_path / "recipe.json"), str(tmp_path / "store")])
    commits = tmp_path / "store" / undisturbed.plan.hash / "commits"
    while not commits.is_dir() or len(list(commits.glob("0*.json"))) < 3:
        assert driver.poll() is None
        time.sleep(0.01)
    driver.send_signal(signal.SIGKILL)
    driver.wait()
    killed = time.time()
    made = generate(recipe, str(tmp_path / "store"))
    kept = [file for file in commits.iterdir() if file.stat().st_mtime < killed]
    assert 3 <= len(kept) < made.shards
    assert made.content_hash == undisturbed.newest().content_hash
    assert files(open_commit_log(made.url)) == files(undisturbed)


def test_a_repair_makes_just_what_is_broken_and_restores_the_content(finished: CommitLog, tmp_path: Path) -> None:
    place = tmp_path / finished.plan.hash
    shutil.copytree(finished.url, place)
    commit_log = open_commit_log(str(place))
    before = commit_log.newest()
    (place / before.shards[0].file_key).unlink()
    (place / before.conditions.file_key).write_bytes(b"")
    (place / "commits/00000016-00000020.json").write_text("{}")
    made = repair(str(place), Resources.model_validate({}))
    after = commit_log.newest()
    assert (made.version, made.content_hash) == (2, before.content_hash)
    assert after.changed == () and commit_log.verify().broken == ()
    assert [commit.revision for commit in after.shards] == [1, 0, 1]
    assert Dataset.open(str(place), 2).conditions().uncond["prompt"].shape == (1, 12, 16)
    assert repair(str(place), Resources.model_validate({})) == made


def test_a_sample_that_cannot_be_stored_is_set_aside_and_the_rest_is_published(
    make_recipe: MakeRecipe, tmp_path: Path
) -> None:
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("\na cat\n")  # no guidance changes what the empty prompt gives
    recipe = make_recipe(prompts=str(prompts), samples=2, batch_size=1, shard_size=1, guidance_scale=1e7, attempts=1)
    made = generate(recipe, str(tmp_path / "store"))
    (poison,) = made.quarantined
    assert "float16 cannot hold" in poison.why
    assert (made.rows, made.shards) == (1, 1)


def test_more_actors_than_the_cluster_holds_are_refused(make_recipe: MakeRecipe, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="resources.generators"):
        generate(make_recipe({"generators": 99}), str(tmp_path))
    assert list(tmp_path.iterdir()) == []
