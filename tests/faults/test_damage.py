"""Shards that rot, shrink, vanish or change places: named by `verify`, refused by readers, mended by `repair`."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from fewstep.orchestrator.datasets.commit_log import CommitLog, open_commit_log
from fewstep.orchestrator.datasets.dataset import Dataset
from fewstep.orchestrator.errors import BadInput
from fewstep.orchestrator.generation.repair import repair
from fewstep.orchestrator.recipe.resources import Resources

pytestmark = [pytest.mark.faults, pytest.mark.usefixtures("cluster")]
FIRST, SECOND, _ = SHARDS = ("00000000-00000008", "00000008-00000016", "00000016-00000020")


def flip(first: Path, second: Path) -> None:
    whole = bytearray(first.read_bytes())
    whole[len(whole) // 2] ^= 1
    first.write_bytes(whole)


def truncate(first: Path, second: Path) -> None:
    first.write_bytes(first.read_bytes()[:-1])


def empty(first: Path, second: Path) -> None:
    first.write_bytes(b"")


def delete(first: Path, second: Path) -> None:
    first.unlink()


def swap(first: Path, second: Path) -> None:
    texts = first.read_bytes(), second.read_bytes()
    assert len(texts[0]) == len(texts[1]) and texts[0] != texts[1]  # only their bytes tell
    first.write_bytes(texts[1])
    second.write_bytes(texts[0])


@pytest.mark.parametrize("records", [False, True], ids=["files", "commits"])
@pytest.mark.parametrize("damage", [flip, truncate, empty, delete, swap])
def test_damage_is_named_refused_and_mended(
    finished: CommitLog, tmp_path: Path, damage: Callable[[Path, Path], None], records: bool
) -> None:
    if damage is delete and records:
        pytest.skip("a shard without a commit is one that was never made")
    place = tmp_path / finished.plan.hash
    shutil.copytree(finished.url, place)
    commit_log = open_commit_log(str(place))
    before = commit_log.newest()
    keys = [commit.key if records else commit.file_key for commit in before.shards]
    damage(place / keys[0], place / keys[1])
    harmed = {FIRST, SECOND} if damage is swap else {FIRST}

    assert {broken.shard for broken in commit_log.verify().broken} == harmed
    groups = Dataset.open(str(place), 1).row_groups()
    for group, shard in enumerate(SHARDS):
        if shard in harmed and not records:  # whoever reads a version needs no commit
            with pytest.raises(BadInput, match=f"shard {shard} .*`fewstep repair"):
                groups.read(group)
        else:
            assert len(groups.read(group)["path"]) in (4, 8)

    made = repair(str(place), Resources())
    assert made.content_hash == before.content_hash and made.quarantined == ()
    after = commit_log.newest()
    assert {commit.name for commit in after.shards if commit.revision} == harmed
    assert after.changed == () and commit_log.verify().broken == ()
