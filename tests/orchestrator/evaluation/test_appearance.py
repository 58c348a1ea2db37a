"""What eyes see in pictures, and what it does to claims."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from fewstep.orchestrator.evaluation.appearance import appearance
from fewstep.orchestrator.evaluation.results import EvaluationResults, Row
from fewstep.orchestrator.features.feature_networks import feature_network
from tests.support.results import KIDS, results


def test_looks_are_those_of_pictures_that_are_known() -> None:
    grey = torch.full((1, 3, 4, 4), 0.5)
    red = torch.tensor([1.0, 0.0, 0.0]).view(1, 3, 1, 1).expand(1, 3, 4, 4)
    halves = torch.cat([torch.zeros(1, 3, 2, 4), torch.ones(1, 3, 2, 4)], 2)
    burnt = 2 * halves - 0.5  # as halves once it is clamped
    expected = [[0, 0, 0, 0.5], [0, 1, 0, 0.299], [0, 0, 0.5, 0.5], [1, 0, 0.5, 0.5]]
    found = appearance(torch.cat([grey, red, halves, burnt]))
    torch.testing.assert_close(found, torch.tensor(expected), atol=1e-6, rtol=0)


def test_a_decoder_may_leave_the_range_by_a_little() -> None:
    assert appearance(torch.full((1, 3, 4, 4), 1.01))[0, 0] == 0


def test_a_loss_of_maps_pulls_back_what_is_out_of_range() -> None:
    images = torch.full((1, 3, 64, 64), 1.5, requires_grad=True)
    sum(maps.sum() for maps in feature_network("mobilenetv2").maps(images)).backward()  # pyright: ignore
    assert images.grad is not None and images.grad.abs().sum() > 0


def seen(metric: str, value: float) -> EvaluationResults:
    """Results whose student at 4 steps has this value of a metric, of which the teacher has 0.6."""
    found = results()
    its = {"features": "mobilenetv2", "reference": "teacher", "metric": metric, "sampler": "ddim"}
    rows = [row for row in found.rows if not row.metric.startswith(metric)]
    for system, steps in KIDS:
        number = value if (system, steps) == ("student", 4) else 0.6
        given = replace(found.find(system, steps, "KID"), value=number, low=number, high=number)
        rows.append(Row(**{**vars(given), **its}))
    return EvaluationResults(rows, found.claims)


@pytest.mark.parametrize(
    ("metric", "value", "objects"),
    [
        ("recall", 0.002, True),
        ("recall", 0.31, False),
        ("variety", 0.29, True),
        ("precision", 0.9, False),
        ("saturation", 0.8, True),
        ("contrast", 0.4, True),
        ("brightness", 0.75, False),
        ("clipped", 0.8, True),
        ("clipped", 0.0, False),
    ],
)
def test_eyes_object_to_what_is_far_from_the_teachers(metric: str, value: float, objects: bool) -> None:
    found = seen(metric, value).objections(4)
    assert found == ([f"{metric} {value:.3f}, where the teacher's 50 steps have 0.600"] if objects else [])
    assert seen(metric, value).objections(8) == []
