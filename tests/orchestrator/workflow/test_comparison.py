from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image
from typer.testing import CliRunner, Result

from fewstep.orchestrator.cli.app import BAD_INPUT, FAILED
from fewstep.orchestrator.cli.main import app
from fewstep.orchestrator.datasets.commit_log import CommitLog
from fewstep.orchestrator.evaluation.results import label
from fewstep.orchestrator.recipe.parsing import load
from fewstep.orchestrator.recipe.recipe import Recipe
from fewstep.orchestrator.runs.run import Run
from tests.support import tiny
from tests.support.results import KIDS, results

STORED = {"name": "lcm", "teacher_step": "stored", "skip": 250, "grid": 4}
HALVING = {"name": "progressive", "teacher_steps": 4, "student_steps": 2}
SHADES = {system: 20 * place for place, system in enumerate(KIDS, 1)}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two recipes on one tiny teacher."""
    folder = tmp_path_factory.mktemp("recipes")
    data = tiny.recipe_data(folder)
    for name, method in {"stored": STORED, "halving": HALVING}.items():
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(data | {"method": method}))
    return folder


def compare(folder: Path, output: Path, *words: str) -> Result:
    recipes = [str(folder / f"{name}.yaml") for name in ("stored", "halving")]
    return CliRunner().invoke(app, ["compare", *recipes, *words, "--output", str(output)])


def placed(recipe: Path, output: Path, seed: int = 0) -> Recipe:
    """The recipe as a comparison runs it."""
    place = f"{output}/runs/{recipe.stem}" + (f"-{seed + 1}" if seed else "")
    shared = [f"trajectories.store={output}/trajectories", f"evaluation.baselines={output}/teacher"]
    return load(str(recipe), [f"output={place}", f"training.seed={seed}", *shared])


def finish(recipe: Path, output: Path, data: CommitLog, kids: dict[tuple[str, int], float], seed: int = 0) -> None:
    """A run as it is when it is done, with numbers made up."""
    run = Run(placed(recipe, output, seed))
    manifest = {"path": data.url, "version": 1, "content_hash": ""}
    run.record("manifests", "first", manifest)
    run.record("manifests", "second", manifest)
    run.record("stages", "train", 1234.5)
    found, evaluation = results(kids), run.folder / "evaluation"
    evaluation.mkdir()
    (evaluation / "metrics.json").write_text(json.dumps([asdict(row) for row in found.rows]))
    (evaluation / "claims.json").write_text(json.dumps([asdict(claim) for claim in found.claims]))
    pictures = {label(*system): np.full((3, 32, 32, 3), SHADES[system], np.uint8) for system in kids}
    np.savez(evaluation / "pictures.npz", allow_pickle=False, captions=np.array(["a cat", "a dog", ""]), **pictures)
    rows = [{"step": step, "train/peak_memory": step * 2**30} for step in (1, 2, 3)]
    (run.folder / "rounds/1-first").mkdir(parents=True)
    (run.folder / "rounds/1-first/metrics.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    (run.folder / "report.html").write_text("done")


def test_finished_runs_are_read_and_stand_in_one_table(folder: Path, tmp_path: Path, finished: CommitLog) -> None:
    finish(folder / "stored.yaml", tmp_path, finished, KIDS)
    finish(folder / "halving.yaml", tmp_path, finished, {**KIDS, ("student", 2): 0.5})
    result = compare(folder, tmp_path)
    assert result.exit_code == 0, result.output
    facts = json.loads((tmp_path / "compare.json").read_text())
    stored, halving = facts["methods"]
    assert [stored["recipe"], stored["method"], stored["steps"]] == ["stored", "lcm", 4]
    assert [halving["recipe"], halving["method"], halving["steps"]] == ["halving", "progressive", 2]
    assert [row["value"] for row in stored["kid"]] == [KIDS["student", steps] for steps in (1, 2, 4, 8)]
    assert [stored["verdict"], halving["verdict"]] == ["better", "worse"]
    assert stored["train_s"] == [1234.5] and stored["cpu_hours"] == pytest.approx(1234.5 / 3600)
    assert stored["peak_memory"] == 3 * 2**30
    assert stored["teacher_evaluations"] == finished.plan.teacher_evaluations  # one data set, of both rounds
    assert facts["teacher"]["null"]["steps"] == 50
    lines = [line for line in (tmp_path / "compare.md").read_text().splitlines() if line.startswith("|")]
    assert len(lines) == 5 and len({line.count("|") for line in lines}) == 1
    cells = lines[3].split(" | ")
    assert cells[4:8] == ["0.0120 [0.0114, 0.0126]", "0.0100 [0.0095, 0.0105]", "4", "-0.0980 [-0.1000, -0.0960]"]
    assert cells[8:12] == ["better", "0.800, 0.600, 1.000", "", "1,234 s"]
    assert sum("| 0.1100 [0.1045, 0.1155] |" in line for line in lines) == 1


def test_seeds_stand_in_one_row_and_the_verdict_is_that_of_all(
    folder: Path, tmp_path: Path, finished: CommitLog
) -> None:
    worse = {**KIDS, ("student", 4): 0.5, ("student", 2): 0.001}
    for name, second in {"stored": worse, "halving": {**KIDS, ("student", 2): 0.001}}.items():
        finish(folder / f"{name}.yaml", tmp_path, finished, {**KIDS, ("student", 2): 0.003})
        finish(folder / f"{name}.yaml", tmp_path, finished, second, seed=1)
    result = compare(folder, tmp_path, "--seeds", "2")
    assert result.exit_code == 0, result.output
    stored, halving = json.loads((tmp_path / "compare.json").read_text())["methods"]
    assert stored["seeds"] == halving["seeds"] == [0, 1]
    assert [stored["verdict"], halving["verdict"]] == ["better 1, worse 1 of 2", "better"]
    assert halving["kid"][1]["value"] == pytest.approx(0.002)
    assert halving["kid"][1]["low"] < 0.001 and halving["kid"][1]["high"] > 0.003
    assert "Of 2 seeds" in (tmp_path / "compare.md").read_text()


def test_the_picture_has_the_teacher_and_each_student_at_its_own_steps(
    folder: Path, tmp_path: Path, finished: CommitLog
) -> None:
    for name in ("stored", "halving"):
        finish(folder / f"{name}.yaml", tmp_path, finished, KIDS)
    compare(folder, tmp_path)
    with Image.open(tmp_path / "compare.png") as sheet:
        column = np.asarray(sheet)[:, -50, 0]
    shades = [shade for shade, before in zip(column[1:], column, strict=False) if shade != before and shade != 255]
    rows = [("teacher", 50), ("teacher", 1), ("teacher", 4), ("student", 4), ("student", 2)]
    assert shades[-5:] == [SHADES[row] for row in rows]


@pytest.mark.usefixtures("cluster")
def test_one_that_fails_is_told_with_its_error_and_the_others_go_on(
    folder: Path, tmp_path: Path, finished: CommitLog
) -> None:
    finish(folder / "halving.yaml", tmp_path, finished, KIDS)
    with Run(placed(folder / "stored.yaml", tmp_path)).driven():
        result = compare(folder, tmp_path)
    assert result.exit_code == FAILED
    facts = json.loads((tmp_path / "compare.json").read_text())
    assert [method["recipe"] for method in facts["methods"]] == ["halving"]
    assert "is already working in" in facts["failed"]["stored"]
    page = (tmp_path / "compare.md").read_text()
    assert "- stored did not finish: output: process" in page and "[halving]" in page


@pytest.mark.parametrize(
    ("section", "changed", "says"),
    [
        ("evaluation", {"samples": 9}, "evaluation.samples is 8 in stored and 9 in other"),
        ("teacher", {"dtype": "bfloat16"}, 'teacher.dtype is "float32" in stored and "bfloat16" in other'),
        ("trajectories", {"negative_prompt": "a dog"}, "trajectories.negative_prompt"),
    ],
)
def test_recipes_that_are_judged_differently_are_refused(
    folder: Path, tmp_path: Path, section: str, changed: dict[str, object], says: str
) -> None:
    data = yaml.safe_load((folder / "halving.yaml").read_text())
    (tmp_path / "other.yaml").write_text(yaml.safe_dump(data | {section: data[section] | changed}))
    result = compare(folder, tmp_path / "out", str(tmp_path / "other.yaml"))
    assert result.exit_code == BAD_INPUT and says in result.stderr
    assert not (tmp_path / "out").exists()


def test_a_run_that_was_begun_with_another_recipe_is_refused_before_any_runs(
    folder: Path, tmp_path: Path, finished: CommitLog
) -> None:
    finish(folder / "halving.yaml", tmp_path, finished, KIDS)
    result = compare(folder, tmp_path, "training.steps=9")
    assert result.exit_code == BAD_INPUT and "training.steps is 4 there and 9 here" in result.stderr
    assert not (tmp_path / "runs" / "stored").exists()


def test_two_recipes_of_one_name_are_refused(folder: Path, tmp_path: Path) -> None:
    result = compare(folder, tmp_path / "out", str(folder / "stored.yaml"))
    assert result.exit_code == BAD_INPUT and "two recipes are called 'stored'" in result.stderr


@pytest.mark.usefixtures("cluster")
def test_two_methods_share_the_teachers_paths_and_features_from_end_to_end(folder: Path, tmp_path: Path) -> None:
    assert compare(folder, tmp_path).exit_code == 0
    (tmp_path / "compare.md").unlink()
    written = (tmp_path / "runs/stored/report.html").stat().st_mtime_ns
    assert compare(folder, tmp_path).exit_code == 0
    assert (tmp_path / "runs/stored/report.html").stat().st_mtime_ns == written
    assert len(list((tmp_path / "trajectories").iterdir())) == 1
    assert not list((tmp_path / "runs").glob("*/evaluation/features/*teacher*"))
    page = (tmp_path / "compare.md").read_text()
    assert "[stored]" in page and "[halving]" in page
    assert (tmp_path / "compare.png").exists()
