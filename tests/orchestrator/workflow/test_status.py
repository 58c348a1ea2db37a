"""What a run tells of itself while it goes on: in a terminal, and as a page."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
from rich.console import Console

from fewstep.orchestrator.errors import BadInput
from fewstep.orchestrator.observability.metrics import Recorder
from fewstep.orchestrator.recipe.parsing import parse
from fewstep.orchestrator.recipe.recipe import Recipe
from fewstep.orchestrator.reports.facts import report_facts, results_of
from fewstep.orchestrator.reports.run_page import page
from fewstep.orchestrator.runs.driver_lock import driver_of
from fewstep.orchestrator.runs.run import RESULT, Run
from fewstep.orchestrator.workflow.report import report
from fewstep.orchestrator.workflow.status import Standing, frame, standing_of, watch
from tests.support import tiny
from tests.support.page import Checker


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Recipe:
    return parse(tiny.recipe_data(tmp_path_factory.mktemp("tiny")))


@pytest.fixture
def run(recipe: Recipe, tmp_path: Path) -> Run:
    """A run that has not begun."""
    return Run(recipe.model_copy(update={"output": str(tmp_path / "run")}))


def begin(run: Run) -> Recorder:
    """Two of three shards, half of the training."""
    shards = {"planned": 3, "committed": 2, "retried": 1, "quarantined": 1}
    generated = Recorder(run.folder / "generate.jsonl", "run", "lcm")
    generated.record(2, {"generate/samples_per_s": 4.0} | {f"generate/shards_{name}": n for name, n in shards.items()})
    training = Recorder(run.folder / "rounds/1-lcm/metrics.jsonl", "run", "lcm")
    training.record(0, {"train/step": 0, "train/steps": 40, "train/recoveries": 0, "train/saved_unix_s": 0.0})
    parts = {"data": 0.1, "forward": 0.5, "backward": 1.2, "update": 0.2}
    values = {"train/step": 20, "train/samples_per_s": 2.0, "train/peak_memory": 5e8, "time/step_s": 2.0}
    values |= {f"time/{part}_s": seconds for part, seconds in parts.items()}
    training.record(20, values | {"loss/student/consistency": 0.25, "grad_norm/student": 3.0})
    training.record(20, {"time/checkpoint_s": 0.5, "quality/kid@4": 0.125})
    return training


def shown(seen: Standing) -> str:
    console = Console(width=120)
    with console.capture() as captured:
        console.print(frame(seen))
    return captured.get()


def test_a_frame_says_how_every_stage_stands(run: Run) -> None:
    begin(run)
    text = " ".join(shown(standing_of(run.folder)).split())
    for said in (
        "run: lcm on teacher; nobody works in it",
        "2/3 shards done",
        "4.0 samples/s, 1 retried, 1 set aside",
        "20/40 steps 40.0 s left",
        "loss student/consistency 0.25, grad_norm student 3",
        "a step 2.0 s: data 5%, forward 25%, backward 60%, update 10%",
        "a checkpoint takes 500 ms, 0 recoveries, 0.50 GB at most",
        "quality: kid@4 0.125",
    ):
        assert said in text


def test_a_run_that_has_not_begun_is_shown_too(run: Run) -> None:
    seen = standing_of(run.folder)
    assert [stage.name for stage in seen.stages] == ["generate", "lcm", "export", "evaluate"]
    assert not any(stage.is_finished or stage.planned for stage in seen.stages)
    assert "lcm" in shown(seen)


def test_watching_ends_when_the_run_does(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    training, ended = begin(run), threading.Event()

    def drive() -> None:
        with run.driven():
            driving.set()
            assert not ended.wait(2.0), "it ended while somebody worked in it"
            training.record(40, {"train/step": 40})
            (run.folder / "rounds/1-lcm" / RESULT).mkdir()

    driving = threading.Event()
    driver = threading.Thread(target=drive)
    driver.start()
    assert driving.wait(30) and driver_of(run.folder)
    facts = watch(run.folder, once=False)
    ended.set()
    driver.join()
    trained = facts["stages"][1]  # pyright: ignore[reportIndexIssue]
    assert (trained["done"], trained["planned"], trained["is_finished"]) == (40, 40, True)


def test_a_folder_that_holds_no_run_is_refused(tmp_path: Path) -> None:
    for verb in (lambda: watch(tmp_path, once=True), lambda: report(str(tmp_path))):
        with pytest.raises(BadInput, match="RUN: .* is no run of fewstep, it has no run.json"):
            verb()


def test_a_report_is_made_of_what_there_is(run: Run) -> None:
    empty = page(report_facts(run, results_of(run)))
    assert "Not judged yet" in empty and "<h2>Training</h2>" not in empty
    begin(run).record(30, {"loss/student/consistency": float("nan")})
    run.record("stages", "generate", 12.5)
    assert report(str(run.folder)) == {"report": str(run.folder / "report.html")}
    whole = (run.folder / "report.html").read_text()
    checker = Checker()
    checker.feed(whole)
    assert checker.open == [] and checker.sources == []
    for title in ("Training", "Quality while it was trained", "Time"):
        assert f"<h2>{title}</h2>" in whole
    for title in ("The picture", "Use the student", "Where things are"):
        assert f"<h2>{title}</h2>" not in whole
