from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from fewstep.orchestrator.datasets.commit_log import CommitLog
from fewstep.orchestrator.datasets.dataset import Dataset
from fewstep.orchestrator.errors import BadInput
from fewstep.orchestrator.generation.shard_makers import ShardSampler, noise_of
from fewstep.orchestrator.inputs.prompts import read_prompts
from fewstep.orchestrator.sampling.guidance import GuidedDenoiser
from fewstep.orchestrator.sampling.ode import sample_path
from fewstep.orchestrator.sampling.solvers import SOLVERS
from fewstep.orchestrator.teachers.teacher import Teacher
from tests.support.data_sets import MakeRecipe, fill, new_commit_log
from tests.support.full_disk import largest_file

SHARDS = ("00000000-00000008", "00000008-00000016", "00000016-00000020")


def test_a_stored_path_is_the_teachers_path_from_the_stored_noise(finished: CommitLog, make_recipe: MakeRecipe) -> None:
    recipe, plan = make_recipe(), finished.plan
    teacher, prompts = Teacher(recipe.teacher), read_prompts(recipe.trajectories.prompts)
    rows = Dataset.open(finished.url, 1).row_groups().read(1)
    asked = [prompts[plan.condition_prompt(c)] for c in rows["condition_id"].tolist()]
    guided = GuidedDenoiser(teacher.denoiser(), teacher.encode(asked), teacher.encode([""]), rows["guidance_scale"])
    path, times = sample_path(SOLVERS["ddim"], teacher.card.scheduler, guided, rows["path"][:, 0].float(), 4)
    # Only the batches differ, so only the last bits of float32 do, and of the float16 that they are rounded to.
    torch.testing.assert_close(rows["path"].float(), path, atol=2e-3, rtol=2e-3)
    assert torch.equal(Dataset.open(finished.url, 1).times(), times)


def test_the_noise_is_the_plans_and_every_column_is_a_function_of_plan_and_id(finished: CommitLog) -> None:
    plan, groups = finished.plan, Dataset.open(finished.url, 1).row_groups()
    ids = []
    for group in range(len(groups.sizes)):
        rows = groups.read(group)
        for row, i in enumerate(rows["sample_id"].tolist()):
            ids.append(i)
            assert rows["seed"][row] == plan.sample_seed(i)
            assert rows["condition_id"][row] == plan.sample_condition(i)
            assert rows["guidance_scale"][row] == plan.sample_guidance(i)
            assert torch.equal(rows["path"][row, 0], noise_of(plan, i).half())
    assert ids == list(range(20))


def test_ends_are_the_ends_of_the_path(finished: CommitLog, make_recipe: MakeRecipe, tmp_path: Path) -> None:
    commit_log = new_commit_log(make_recipe(save="ends"), tmp_path)
    fill(commit_log)
    ends = Dataset.open(commit_log.url, 1)
    whole = Dataset.open(finished.url, 1).row_groups().read(2)["path"]
    assert torch.equal(ends.row_groups().read(2)["path"], whole[:, [0, -1]])
    assert ends.times().tolist() == [999.0, -1.0]


def test_an_adaptive_solver_stores_the_same_ends_whether_it_stops_on_the_way_or_not(
    make_recipe: MakeRecipe, tmp_path: Path
) -> None:
    paths = []
    for save in ("all", "ends"):
        commit_log = new_commit_log(
            make_recipe(save=save, solver="rk45", dtype="float32", samples=2, batch_size=2, shard_size=2), tmp_path
        )
        fill(commit_log)
        paths.append(Dataset.open(commit_log.url, commit_log.newest().version).row_groups().read(0)["path"])
    assert [path.shape[1] for path in paths] == [5, 2]
    # Each step is right to the tolerance; this network has random weights, and is rough between its times.
    torch.testing.assert_close(paths[0][:, [0, -1]], paths[1], atol=5e-2, rtol=0)


def test_writing_beside_the_next_sampling_changes_nothing(
    finished: CommitLog, make_recipe: MakeRecipe, tmp_path: Path
) -> None:
    commit_log = new_commit_log(make_recipe(), tmp_path)
    sampler = ShardSampler(commit_log, "cpu", 1)
    with ThreadPoolExecutor(2) as threads:
        list(threads.map(lambda shard: sampler.make(SHARDS[shard], 0), (2, 0, 1)))
    assert commit_log.publish(commit_log.commits()[0]).content_hash == finished.newest().content_hash


def test_a_full_disk_commits_nothing_and_the_same_call_continues(
    finished: CommitLog, make_recipe: MakeRecipe, tmp_path: Path
) -> None:
    commit_log = new_commit_log(make_recipe(), tmp_path)
    sampler = ShardSampler(commit_log, "cpu", 1)
    sampler.make(SHARDS[0], 0)
    with largest_file(15_000), pytest.raises(BadInput, match="no space left at .* continues"):
        sampler.make(SHARDS[1], 0)
    assert not commit_log.has("00000008-00000016", 0) and commit_log.store.keys("shards/00000008-00000016") == []
    sampler.make(SHARDS[1], 0)
    sampler.make(SHARDS[2], 0)
    assert commit_log.publish(commit_log.commits()[0]).content_hash == finished.newest().content_hash


def test_two_drivers_on_one_place_keep_one_file_per_shard(
    finished: CommitLog, make_recipe: MakeRecipe, tmp_path: Path
) -> None:
    first, second = (new_commit_log(make_recipe(), tmp_path) for _ in range(2))
    samplers = [ShardSampler(commit_log, "cpu", 1) for commit_log in (first, second)]
    with ThreadPoolExecutor(2) as drivers:
        versions = list(drivers.map(lambda s: [s.make(shard, 0) for shard in SHARDS], samplers))
    assert versions[0] == versions[1]
    for name in SHARDS:
        assert len(first.store.keys(f"shards/{name}")) == 1
    manifests = [commit_log.publish(commit_log.commits()[0]) for commit_log in (first, second)]
    assert manifests[0] == manifests[1] and manifests[0].content_hash == finished.newest().content_hash


def test_numbers_that_the_dtype_cannot_hold_are_never_stored(make_recipe: MakeRecipe, tmp_path: Path) -> None:
    commit_log = new_commit_log(make_recipe(guidance_scale=1e9), tmp_path)
    with pytest.raises(ValueError, match="sample 0 has numbers that float16 cannot hold"):
        ShardSampler(commit_log, "cpu", 1).make(SHARDS[0], 0)
    assert not commit_log.has("00000000-00000008", 0)


def test_more_samples_are_a_new_version_that_keeps_all_rows(
    finished: CommitLog, make_recipe: MakeRecipe, tmp_path: Path
) -> None:
    short, long = (new_commit_log(make_recipe(samples=samples), tmp_path) for samples in (20, 30))
    assert short.url == long.url
    for commit_log, names in ((short, SHARDS), (long, ("00000016-00000024", "00000024-00000030"))):
        sampler = ShardSampler(commit_log, "cpu", 1)
        for name in names:
            sampler.make(name, 0)
    first, second = (commit_log.publish(commit_log.commits()[0]) for commit_log in (short, long))
    assert (first.rows, second.rows, second.version) == (20, 30, 2)
    assert first.content_hash == finished.newest().content_hash
    assert second.shards[:2] == first.shards[:2] and second.changed == ()
    old, new = (Dataset.open(short.url, version).row_groups() for version in (1, 2))
    whole = {name: torch.cat([new.read(g)[name] for g in range(len(new.sizes))]) for name in ("sample_id", "path")}
    before = {name: torch.cat([old.read(g)[name] for g in range(len(old.sizes))]) for name in ("sample_id", "path")}
    assert whole["sample_id"].tolist() == list(range(30))
    assert torch.equal(whole["path"][:20], before["path"])  # also those of the shard that was cut short
    assert short.publish(short.commits()[0]) == first
