"""Students that are judged while two ranks train them, and when training is ended for it."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from fewstep.methods import METHODS
from fewstep.orchestrator.errors import BadInput
from fewstep.orchestrator.evaluation.baselines import kids
from fewstep.orchestrator.evaluation.distances import units_of
from fewstep.orchestrator.evaluation.evaluator import Evaluator
from fewstep.orchestrator.evaluation.system import SampleFeatures
from fewstep.orchestrator.observability import metrics
from fewstep.orchestrator.recipe.parsing import parse
from fewstep.orchestrator.students.pipeline import write
from fewstep.orchestrator.training import checkpoint
from fewstep.orchestrator.training.divergence import REPORTS, WINDOW, Divergence, DivergenceMonitor, LatentMoments
from tests.support import pair, tiny
from tests.support import validations as exams

TEACHER = LatentMoments(0.1, 1.0)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every case, by one pair of processes."""
    folder = tmp_path_factory.mktemp("exams")
    exams.prepare(folder)
    pair.run("tests.support.validations", folder)
    return folder


def judged(trained: Path, case: str) -> dict[int, float]:
    """What was found, by step."""
    rows = metrics.read(trained / case / "metrics.jsonl")
    return {int(row["step"]): row["quality/kid@4"] for row in rows if "quality/kid@4" in row}


@pytest.mark.parametrize("case", ["judged", "past its best"])
def test_the_result_is_the_best_that_was_judged_and_its_export_is_worth_what_was_found(
    trained: Path, case: str, tmp_path: Path
) -> None:
    recipe = exams.recipe_of(case, tmp_path)
    write(recipe, trained / case / "result", tmp_path / "student")
    validation_spec = exams.exam_of(recipe)
    evaluator = Evaluator(replace(validation_spec.setting, student=str(tmp_path / "student")))
    made = SampleFeatures.join([evaluator.measure(validation_spec.system, range(start, start + 4)) for start in (0, 4)])
    (kid,) = kids([validation_spec.reference.features, made.features], units_of(8, len(tiny.PROMPTS)))
    assert kid == pytest.approx(min(judged(trained, case).values()), abs=1e-5)


def test_a_student_is_judged_at_intervals_and_at_the_end(trained: Path) -> None:
    assert list(judged(trained, "judged")) == [2, 4, 5]


def test_tensorboard_shows_what_was_measured_and_what_the_student_makes(trained: Path) -> None:
    board = EventAccumulator(str(trained / "judged/tensorboard")).Reload()
    assert {event.step: event.value for event in board.Scalars("quality/kid@4")} == pytest.approx(
        judged(trained, "judged")
    )
    assert [event.step for event in board.Images("samples")] == [2, 4, 5]
    assert board.Scalars("train/step")[-1].value == 5


def test_what_eyes_see_is_recorded_beside_the_score(trained: Path) -> None:
    newest = metrics.newest(trained / "judged/metrics.jsonl")
    shares = [newest[f"quality/{name}@4"] for name in ("precision", "recall", "clipped", "saturation", "brightness")]
    assert all(0 <= share <= 1 for share in shares) and newest["quality/variety@4"] > 0


def test_pictures_stand_below_the_teachers_at_every_evaluation(trained: Path) -> None:
    files = sorted((trained / "judged/pictures").iterdir())
    assert [file.name for file in files] == ["step-0000002.png", "step-0000004.png", "step-0000005.png"]
    with Image.open(files[0]) as sheet:
        assert sheet.height > 2 * 96 and sheet.width > 8 * 96


def test_training_stops_when_the_student_is_past_its_best(trained: Path) -> None:
    found = judged(trained, "past its best")
    best = min(found, key=lambda step: found[step])
    assert list(found) == list(range(1, best + 4)) and best + 3 < exams.CASES["past its best"]["steps"]
    kept = {int(folder.name.split("-")[1]) for folder in (trained / "past its best/checkpoints").iterdir()}
    assert kept == {best, best + 1, best + 2}  # and the last two


def test_ruined_training_stops_with_the_reason_and_the_last_good_checkpoint(trained: Path) -> None:
    said = [(trained / "ruined" / f"{rank}.txt").read_text() for rank in range(2)]
    assert said[0] == said[1] and "training went wrong at step" in said[0] and " nan" in said[0]
    good = Path(said[0].rpartition(" ")[2])
    assert checkpoint.broken(good) == ""
    assert not (trained / "ruined/result").exists()


def monitor(name: str = "add", *, is_scaled: bool = False) -> DivergenceMonitor:
    return DivergenceMonitor(METHODS[name]().rounds()[0], is_scaled=is_scaled)


def settled(watch: DivergenceMonitor) -> DivergenceMonitor:
    """After as many reports as a median is of."""
    usual = {"loss/student/a": 1.0, "loss/student/b": 0.5, "loss/discriminator/hinge": 1e-3}
    assert all(watch.report(step, usual) is None for step in range(1, WINDOW + 1))
    return watch


def test_a_loss_that_runs_away_is_seen_after_a_few_reports() -> None:
    watch = settled(monitor())
    found = [watch.report(WINDOW + i, {"loss/student/a": 20.0, "loss/student/b": 1.0}) for i in range(1, REPORTS + 1)]
    assert found[:-1] == [None] * (REPORTS - 1)
    assert found[-1] and "student is 21" in found[-1].why and found[-1].good == WINDOW


def test_one_high_loss_is_chance_and_so_is_a_critic_that_is_fooled_again() -> None:
    watch = settled(monitor())
    for step, loss in enumerate([50.0, 50.0, 1.0, 50.0], WINDOW + 1):
        assert watch.report(step, {"loss/student/a": loss, "loss/discriminator/hinge": 2.0}) is None


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_what_is_not_finite_is_seen_at_once(value: float) -> None:
    assert monitor().report(7, {"loss/student/a": value}) == Divergence(f"loss/student/a is {value}", 0)
    assert monitor().report(7, {"loss/student/a": 1.0, "grad_norm/student": value}) is not None
    assert monitor(is_scaled=True).report(7, {"loss/student/a": 1.0, "grad_norm/student": value}) is None


@pytest.mark.parametrize("made", [(0.1, 9.0), (0.1, 0.01), (9.0, 1.0), (math.nan, math.nan)])
def test_latents_far_from_the_teachers_are_seen(made: tuple[float, float]) -> None:
    watch = monitor()
    assert watch.samples(3, LatentMoments(0.3, 0.5), TEACHER, 1.0) is None
    found = watch.samples(6, LatentMoments(*made), TEACHER, 1.0)
    assert found and "the student's latents have mean" in found.why and found.good == 3


def test_pictures_that_come_to_be_alike_are_seen_and_blurs_at_the_start_are_not() -> None:
    watch = monitor()
    steps = enumerate([0.05, 0.1, 0.6, 0.1, 0.5, 0.1], 1)
    assert [watch.samples(step, TEACHER, TEACHER, variety) for step, variety in steps] == [None] * 6
    found = watch.samples(7, TEACHER, TEACHER, 0.02)
    assert found and "different noise are alike: 0.020 of the teacher's variety" in found.why and found.good == 5


def test_patience_without_evaluations_is_refused(tmp_path: Path) -> None:
    told = tiny.recipe_data(tmp_path)
    training = {"steps": 4, "patience": 2}
    with pytest.raises(BadInput, match="set evaluate_every"):
        parse({**told, "training": training})
