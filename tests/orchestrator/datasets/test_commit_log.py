from __future__ import annotations

import dataclasses
import pickle
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from fewstep.orchestrator.datasets.commit_log import CommitLog, count_committed, create_commit_log, open_commit_log
from fewstep.orchestrator.datasets.dataset import Dataset
from fewstep.orchestrator.datasets.manifest import CONDITIONS, Commit
from fewstep.orchestrator.datasets.sealed_records import Damaged, seal
from fewstep.orchestrator.datasets.shard_file import Columns
from fewstep.orchestrator.errors import BadInput
from fewstep.orchestrator.generation.shard_makers import ShardSampler, scalars
from fewstep.orchestrator.storage.local import LocalStore

COMPUTE: dict[str, str | int] = {"device": "test"}


@pytest.fixture
def copy(finished: CommitLog, tmp_path: Path) -> CommitLog:
    """The finished data set, free to be damaged."""
    place = tmp_path / finished.plan.hash
    shutil.copytree(finished.url, place)
    return open_commit_log(str(place))


@pytest.fixture
def empty(finished: CommitLog, tmp_path: Path) -> CommitLog:
    return create_commit_log(str(tmp_path), finished.plan, finished.prompts(), finished.teacher)


def rows(commit_log: CommitLog, shard: int) -> Columns:
    """Rows that need no teacher."""
    ids = commit_log.plan.shards()[shard].samples
    return {
        **scalars(commit_log.plan, ids),
        "path": torch.full((len(ids), *commit_log.plan.path_shape(0)), shard).half(),
    }


def flip(file: Path, place: int) -> None:
    whole = bytearray(file.read_bytes())
    whole[place] ^= 16
    file.write_bytes(whole)


def test_of_racing_writers_one_commits_and_all_agree(empty: CommitLog) -> None:
    def write(_: int) -> Commit:
        return open_commit_log(empty.url).commit("00000000-00000008", 0, rows(empty, 0), {}, COMPUTE)

    with ThreadPoolExecutor(8) as writers:
        commits = list(writers.map(write, range(8)))
    assert len({commit.attempt for commit in commits}) == 1
    assert empty.store.keys("shards/00000000-00000008") == [commits[0].file_key]  # the losers took theirs away


class LosesAnswers(LocalStore):
    """Every creation succeeds, and its answer gets lost: a repetition was told that the key exists."""

    def put_if_absent(self, key: str, data: bytes) -> bool:
        super().put_if_absent(key, data)
        return False


def test_a_commit_whose_answer_was_lost_is_still_ours(empty: CommitLog) -> None:
    commit_log = CommitLog(LosesAnswers(Path(empty.url)), empty.plan, empty.teacher)
    commit = commit_log.commit("00000000-00000008", 0, rows(empty, 0), {}, COMPUTE)
    assert empty.commits()[0] == {"00000000-00000008": commit}
    assert empty.check(commit) == ""


def test_a_commit_of_another_driver_whose_file_is_damaged_is_refused(empty: CommitLog) -> None:
    commit = empty.commit("00000000-00000008", 0, rows(empty, 0), {}, COMPUTE)
    flip(Path(empty.url) / commit.file_key, 1000)
    with pytest.raises(Damaged, match="shard 00000000-00000008"):
        empty.commit("00000000-00000008", 0, rows(empty, 0), {}, COMPUTE)


def test_what_is_not_committed_does_not_exist(empty: CommitLog) -> None:
    empty.store.write("shards/00000008-00000016/0123456789abcdef.parquet", b"half a sha")
    empty.commit(CONDITIONS, 0, {"condition_id": torch.arange(-1, 4), "prompt": torch.zeros(5, 2)}, {}, COMPUTE)
    empty.commit("00000000-00000008", 0, rows(empty, 0), {}, COMPUTE)
    assert [commit.name for commit in empty.publish(empty.commits()[0]).shards] == ["00000000-00000008"]


def test_publishing_again_makes_no_new_version_until_something_is_new(copy: CommitLog) -> None:
    commits, _ = copy.commits()
    assert copy.publish(commits).version == 1 and copy.versions() == [1]
    fewer = {name: commit for name, commit in commits.items() if name != "00000016-00000020"}
    assert copy.publish(fewer).version == 2
    assert copy.newest().rows == 16
    assert Dataset.open(copy.url, 1).manifest.rows == 20  # a reader keeps the version that it pinned


def test_the_content_hash_is_that_of_all_shards_in_order(copy: CommitLog) -> None:
    commits, _ = copy.commits()
    before = copy.newest().content_hash
    swapped = {
        **commits,
        "00000000-00000008": dataclasses.replace(commits["00000000-00000008"], file=commits["00000008-00000016"].file),
        "00000008-00000016": dataclasses.replace(commits["00000008-00000016"], file=commits["00000000-00000008"].file),
    }
    manifest = copy.publish(swapped)
    assert manifest.content_hash != before
    assert manifest.changed == ("00000000-00000008", "00000008-00000016")


def test_another_plan_in_the_same_place_is_refused(finished: CommitLog, tmp_path: Path) -> None:
    other = finished.plan.model_copy(update={"seed": 8})
    shutil.copytree(finished.url, tmp_path / other.hash)
    with pytest.raises(BadInput, match="holds another plan, which differs in seed"):
        create_commit_log(str(tmp_path), other, finished.prompts(), finished.teacher)


def test_a_folder_that_is_no_data_set_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="is no data set"):
        open_commit_log(str(tmp_path))


def test_committed_shards_are_counted_without_touching_the_place(finished: CommitLog, tmp_path: Path) -> None:
    assert count_committed(str(Path(finished.url).parent), finished.plan) == 3
    assert count_committed(str(tmp_path / "nowhere"), finished.plan) == 0
    assert not (tmp_path / "nowhere").exists()


def test_a_damaged_shard_is_named_with_its_mend_by_verify_and_by_readers(copy: CommitLog) -> None:
    commit = copy.newest().shards[1]
    file = Path(copy.url) / commit.file_key
    whole = file.read_bytes()

    def damage(kind: str) -> None:
        if kind == "truncated":
            file.write_bytes(whole[: len(whole) // 2])
        elif kind == "has changed":
            flip(file, len(whole) // 2)
        else:
            file.unlink()

    for kind in ("truncated", "has changed", "is gone"):
        file.write_bytes(whole)
        damage(kind)
        (broken,) = copy.verify().broken
        assert broken.shard == "00000008-00000016" and kind in broken.why
        for read in (Dataset.open(copy.url, 1).check, lambda: Dataset.open(copy.url, 1).row_groups().read(1)):
            with pytest.raises(BadInput, match=f"shard 00000008-00000016 of .*{kind}.* `fewstep repair {copy.url}`"):
                read()
        assert len(Dataset.open(copy.url, 1).row_groups().read(0)["path"]) == 8


def test_a_flipped_bit_in_a_commit_or_a_manifest_is_named(copy: CommitLog) -> None:
    flip(Path(copy.url) / "commits/00000016-00000020.json", 40)
    flip(Path(copy.url) / "manifest/0001.json", 400)
    assert {broken.shard for broken in copy.verify().broken} == {"00000016-00000020", "version 1"}
    with pytest.raises(Damaged, match="version 1 of .* `fewstep repair"):
        Dataset.open(copy.url, 1)


def test_records_that_were_swapped_are_named(copy: CommitLog) -> None:
    first, second = (Path(copy.url) / f"commits/{shard}.json" for shard in ("00000000-00000008", "00000008-00000016"))
    texts = first.read_bytes(), second.read_bytes()
    first.write_bytes(texts[1])
    second.write_bytes(texts[0])
    _, broken = copy.commits()
    assert {record.shard for record in broken} == {"00000000-00000008", "00000008-00000016"}
    assert "is that of shard 00000008-00000016, put in its place" in broken[0].why


def test_a_version_that_claims_absurd_rows_is_refused_when_it_is_opened(copy: CommitLog) -> None:
    before = copy.newest()
    commit = before.shards[1]
    groups = tuple(dataclasses.replace(group, rows=10**15) for group in commit.file.row_groups)
    claim = dataclasses.replace(commit, file=dataclasses.replace(commit.file, rows=10**15, row_groups=groups))
    forged = dataclasses.replace(before, shards=(before.shards[0], claim, before.shards[2]))
    (Path(copy.url) / "manifest/0001.json").write_bytes(seal(dataclasses.asdict(forged)))
    with pytest.raises(BadInput, match="shard 00000008-00000016 of .* claims 1000000000000000 rows .* `fewstep repair"):
        Dataset.open(copy.url, 1)


def test_a_damaged_plan_is_named_and_written_again(copy: CommitLog) -> None:
    flip(Path(copy.url) / "plan.json", 100)
    with pytest.raises(Damaged, match="delete it and repeat `fewstep generate`"):
        open_commit_log(copy.url)
    (Path(copy.url) / "plan.json").unlink()
    again = create_commit_log(str(Path(copy.url).parent), copy.plan, copy.prompts(), copy.teacher)
    assert again.plan == copy.plan and again.verify().broken == ()


def test_errors_about_damage_travel_between_processes(copy: CommitLog) -> None:
    commit = copy.newest().shards[0]
    (Path(copy.url) / commit.file_key).unlink()
    with pytest.raises(Damaged) as caught:
        copy.reader(commit)
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)


def test_a_teacher_that_changed_is_refused(copy: CommitLog, tmp_path: Path) -> None:
    teacher = tmp_path / "teacher"
    shutil.copytree(copy.teacher.folder, teacher)
    config = teacher / "scheduler/scheduler_config.json"
    config.write_text(config.read_text().replace("0.012", "0.013"))
    changed = CommitLog(copy.store, copy.plan, copy.teacher.model_copy(update={"folder": str(teacher)}))
    with pytest.raises(BadInput, match="is not the teacher that made"):
        ShardSampler(changed, "cpu", 1)
