from __future__ import annotations

from pathlib import Path

import pytest

from fewstep.orchestrator.training import checkpoint

FACTS = checkpoint.CheckpointFacts(world_size=1, batches="0a", scores=((5, 0.25),))


def written(root: Path, step: int) -> Path:
    folder = checkpoint.new_folder(root, step)
    (folder / "student").mkdir(parents=True)
    (folder / "student/state.pt").write_bytes(bytes([step]) * 1000)
    checkpoint.seal(folder, step, FACTS)
    return folder


def test_the_newest_checkpoint_is_found_with_its_facts(tmp_path: Path) -> None:
    written(tmp_path, 5)
    written(tmp_path, 10)
    found = checkpoint.newest(tmp_path)
    assert found and found.step == 10 and found.facts == FACTS


def test_there_is_no_checkpoint_before_the_first(tmp_path: Path) -> None:
    assert checkpoint.newest(tmp_path / "checkpoints") is None


def test_a_checkpoint_that_was_not_finished_does_not_count(tmp_path: Path) -> None:
    written(tmp_path, 5)
    (checkpoint.new_folder(tmp_path, 10) / "student").mkdir(parents=True)
    found = checkpoint.newest(tmp_path)
    assert found and found.step == 5


@pytest.mark.parametrize(
    "damage",
    [
        lambda file: file.write_bytes(file.read_bytes()[:500]),
        lambda file: file.write_bytes(b"\x00" + file.read_bytes()[1:]),
        lambda file: file.unlink(),
        lambda file: (file.parent.parent / checkpoint.RECORD).write_text("{"),
    ],
    ids=["truncated", "changed", "gone", "record"],
)
def test_a_damaged_checkpoint_falls_back_to_the_one_before_and_says_so(tmp_path: Path, damage, capsys) -> None:
    written(tmp_path, 5)
    damage(written(tmp_path, 10) / "student/state.pt")
    found = checkpoint.newest(tmp_path)
    assert found and found.step == 5
    assert "damaged" in capsys.readouterr().err


def test_pruning_keeps_the_newest_and_clears_what_a_crash_left(tmp_path: Path) -> None:
    for step in (5, 10, 15):
        written(tmp_path, step)
    unfinished = checkpoint.new_folder(tmp_path, 7)
    unfinished.mkdir()
    checkpoint.prune(tmp_path, keep=2)
    assert [folder.name[:13] for folder in sorted(tmp_path.iterdir())] == ["step-00000010", "step-00000015"]
