"""No method's training step asks more of its denoisers than its papers' does."""

from __future__ import annotations

import pytest

from fewstep.methods import METHODS
from fewstep.orchestrator.teachers.teacher import Teacher
from tests.benchmarks.work import Work, embedded_teacher
from tests.support.passes import EXPECTED, FEWER


@pytest.fixture(scope="module")
def teacher() -> Teacher:
    return embedded_teacher()


def test_every_method_is_counted() -> None:
    assert {expected.method for expected in EXPECTED.values()} == set(METHODS)


@pytest.mark.parametrize("name", EXPECTED)
def test_a_step_makes_as_many_passes_as_the_papers(name: str, teacher: Teacher) -> None:
    expected = EXPECTED[name]
    passes = Work(teacher, expected.round, batch_size=2).passes(expected.steps)
    assert passes <= FEWER * expected.passes
