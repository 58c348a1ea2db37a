"""What a person sees of the factory: the plan and its price, a look into a data set, cleaning up."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
import ray
from PIL import Image

from fewstep.orchestrator.datasets.commit_log import CommitLog, open_commit_log
from fewstep.orchestrator.errors import BadInput
from fewstep.orchestrator.generation.data_sets import generate
from fewstep.orchestrator.generation.repair import repair
from fewstep.orchestrator.observability.durations import seconds_of
from fewstep.orchestrator.planning.store_access import check_nodes, check_space
from fewstep.orchestrator.recipe.resources import Resources
from fewstep.orchestrator.workflow import inspection
from fewstep.orchestrator.workflow.plan import plan
from tests.support.data_sets import MakeRecipe


def test_a_plan_says_what_is_missing_and_what_it_costs_and_touches_nothing(
    cluster: None, make_recipe: MakeRecipe, tmp_path: Path
) -> None:
    recipe = make_recipe(store=str(tmp_path / "store"), save="ends")
    facts = plan(recipe, 3600.0)
    assert (facts["rows"], facts["shards"], facts["committed"]) == (20, 3, 0)
    assert facts["teacher_evaluations"] == 20 * 4 * 2
    seconds, hours = facts["seconds_per_batch"], facts["device_hours"]
    assert isinstance(seconds, float) and isinstance(hours, float)
    assert seconds > 0 and hours == pytest.approx(5 * seconds / 3600, abs=2e-4)  # 20 samples in batches of 4
    assert facts["cost"] == pytest.approx(hours * 3600, abs=0.5)
    assert list(tmp_path.iterdir()) == []


def test_a_batch_size_is_found_once_for_a_data_set(cluster: None, make_recipe: MakeRecipe, tmp_path: Path) -> None:
    recipe = make_recipe(batch_size="auto", shard_size=4)
    made = generate(recipe, str(tmp_path))
    assert open_commit_log(made.url).plan.batch_size in (1, 2, 4)
    assert generate(recipe, str(tmp_path)) == made


def test_a_data_set_in_a_bucket_is_made_and_repaired(
    cluster: None, finished: CommitLog, make_recipe: MakeRecipe, s3_url: str
) -> None:
    made = generate(make_recipe({"generators": 2}), s3_url)
    assert made.content_hash == finished.newest().content_hash
    commit_log = open_commit_log(made.url)
    commit_log.store.delete(commit_log.newest().shards[1].file_key)
    again = repair(made.url, Resources())
    assert (again.version, again.content_hash) == (2, made.content_hash)
    assert commit_log.verify().broken == ()
    assert not any(
        b"canary" in commit_log.store.read(stored.key) for stored in commit_log.store.files()
    )  # no credentials


def test_credentials_are_written_nowhere(
    cluster: None, make_recipe: MakeRecipe, s3_url: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert "canary" in os.environ["AWS_SECRET_ACCESS_KEY"] and "canary" in os.environ["AWS_ACCESS_KEY_ID"]
    recipe = make_recipe(store=s3_url)
    facts = plan(recipe, 1.0)
    commit_log = open_commit_log(generate(recipe, s3_url).url)
    inspection.show(commit_log.url, 3, str(tmp_path / "paths.png"))
    inspection.verify(commit_log.url)
    with pytest.raises((BadInput, OSError)) as refused:
        generate(recipe, "s3://no-such-bucket/here")
    session = Path(ray.nodes()[0]["ObjectStoreSocketName"]).parents[1]
    files = [file for folder in (session, tmp_path) for file in folder.rglob("*") if file.is_file()]
    assert any(file.name.startswith("worker-") for file in files) and any(file.suffix == ".png" for file in files)
    texts = [file.read_bytes() for file in files] + [
        commit_log.store.read(stored.key) for stored in commit_log.store.files()
    ]
    said = [*capfd.readouterr(), repr(refused.value), repr(recipe.resolved()), repr(facts)]
    assert not [text for text in [*texts, *(part.encode() for part in said)] if b"canary" in text]


def test_a_look_into_a_data_set(cluster: None, finished: CommitLog, tmp_path: Path) -> None:
    facts = inspection.show(finished.url, 3, str(tmp_path / "paths.png"))
    assert (facts["rows"], facts["solver"], facts["guidance_scale"]) == (20, "ddim", [1.0, 4.0])
    assert facts["content_hash"] == finished.newest().content_hash
    assert Image.open(tmp_path / "paths.png").size[0] > 3 * 96


def test_nodes_that_cannot_use_the_store_are_named(cluster: None, tmp_path: Path) -> None:
    check_nodes(str(tmp_path / "not/there/yet"), Resources())
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(BadInput, match="trajectories.store: .*cannot be written"):
        check_nodes("/proc/fewstep", Resources())


def test_a_plan_that_does_not_fit_the_disk_is_refused(finished: CommitLog, tmp_path: Path) -> None:
    check_space(str(tmp_path), finished.plan, 0)
    huge = finished.plan.model_copy(update={"samples": 10**13, "shard_size": 10**12})
    with pytest.raises(BadInput, match="GB free"):
        check_space(str(tmp_path), huge, 0)


def test_cleaning_removes_what_no_commit_names_once_it_is_old(finished: CommitLog, tmp_path: Path) -> None:
    place = tmp_path / finished.plan.hash
    shutil.copytree(finished.url, place)
    commit_log = open_commit_log(str(place))
    before = {stored.key for stored in commit_log.store.files()}
    lost = f"shards/00000000-00000008/{'0' * 32}.parquet"
    commit_log.store.write(lost, b"lost a race")
    commit_log.store.write("notes.txt", b"somebody's own")
    commit_log.store.write(f"commits/probe-{'0' * 32}", b"first")
    assert commit_log.clean(60.0).files == 0
    for file in place.rglob("*"):
        os.utime(file, (1, 1))
    removed = inspection.clean(commit_log.url, "1m")
    assert (removed["files"], removed["bytes"]) == (2, 16)
    assert {stored.key for stored in commit_log.store.files()} == before | {"notes.txt"}
    assert commit_log.verify().broken == ()


def test_cleaning_a_copy_without_commits_keeps_what_its_versions_name(finished: CommitLog, tmp_path: Path) -> None:
    place = tmp_path / finished.plan.hash
    shutil.copytree(finished.url, place, ignore=shutil.ignore_patterns("commits"))
    commit_log = open_commit_log(str(place))
    assert commit_log.clean(-1.0).files == 0
    assert commit_log.verify().broken == ()


@pytest.mark.parametrize(("span", "seconds"), [("90s", 90), ("1.5m", 90), ("2h", 7200), ("7d", 604800)])
def test_ages_are_told_as_people_write_them(span: str, seconds: float) -> None:
    assert seconds_of(span, "--older-than") == seconds


@pytest.mark.parametrize("span", ["7200", "2 weeks", "-1h", ""])
def test_an_age_that_says_nothing_is_refused(finished: CommitLog, span: str) -> None:
    with pytest.raises(BadInput, match="--older-than: .* like 90s, 30m, 2h or 7d"):
        inspection.clean(finished.url, span)
