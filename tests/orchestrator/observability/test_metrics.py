from __future__ import annotations

import ast
import math
from pathlib import Path

import pytest

from fewstep.orchestrator.observability import metrics
from fewstep.orchestrator.observability.metrics import REGISTRY, Metric, Recorder
from tests.support.source import ROOT


def spoken(file: Path) -> set[str]:
    """The strings of a file, and what its f-strings begin with."""
    constants = {node.value for node in ast.walk(ast.parse(file.read_text())) if isinstance(node, ast.Constant)}
    return {value for value in constants if isinstance(value, str)}


@pytest.mark.parametrize("metric", REGISTRY.values(), ids=lambda metric: metric.name)
def test_a_registered_metric_is_recorded_somewhere(metric: Metric) -> None:
    files = {*(ROOT / "orchestrator").rglob("*.py")} - {Path(metrics.__file__).resolve()}
    said = set[str]().union(*map(spoken, files))
    assert any(value.startswith(f"{metric.name}/") if metric.has_term else value == metric.name for value in said)


def test_a_metric_says_what_it_is_and_has_few_series() -> None:
    assert all(metric.help and metric.unit for metric in REGISTRY.values())
    assert {tag for metric in REGISTRY.values() for tag in metric.tags} == {"run", "method", "term"}
    assert REGISTRY["generate/bytes"].in_prometheus == "ray_fewstep_generate_bytes_total"
    assert REGISTRY["train/step"].in_prometheus == "ray_fewstep_train_step"


def test_a_number_that_is_not_registered_is_refused(tmp_path: Path) -> None:
    recorder = Recorder(tmp_path / "metrics.jsonl", "run", "method")
    for unknown in ("train/stepp", "loss", "train/step/3"):
        with pytest.raises(KeyError, match="not in the metrics registry"):
            recorder.record(1, {"train/step": 1, unknown: 0.0})
    assert metrics.read(tmp_path / "metrics.jsonl") == []


def test_rows_of_one_step_are_read_as_one_and_what_was_written_last_counts(tmp_path: Path) -> None:
    file = tmp_path / "metrics.jsonl"
    recorder = Recorder(file, "run", "method")
    recorder.record(10, {"train/step": 10, "loss/student/x0": 0.5})
    recorder.record(10, {"time/checkpoint_s": 2.0})
    recorder.record(20, {"train/step": 20, "loss/student/x0": math.nan})
    recorder.record(10, {"train/step": 10, "loss/student/x0": 0.25})
    with file.open("a") as stream:
        stream.write('{"step": 30, "loss/stu')  # as a kill leaves it
    first, second = metrics.read(file)
    assert (first["step"], first["loss/student/x0"], first["time/checkpoint_s"]) == (10, 0.25, 2.0)
    assert second["step"] == 20 and math.isnan(second["loss/student/x0"])
    assert metrics.newest(file)["train/step"] == 10
    recorder.record(30, {"train/step": 30})  # as the next attempt goes on
    assert [row["step"] for row in metrics.read(file)] == [10, 20, 30]
