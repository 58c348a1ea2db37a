"""A training that was ended and goes on, at every ZeRO stage; tests/slow has it for every method."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support import resume

CASES = ("lcm",)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Each test for all cases of the module that it is in."""
    metafunc.parametrize(("case", "stage"), resume.pairs_of(metafunc.module.CASES))


@pytest.fixture(scope="module")
def parts(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of every case, at every stage."""
    folder = tmp_path_factory.mktemp("resume")
    resume.run(request.module.CASES, folder)
    return folder


def test_as_many_ranks_end_in_the_very_same_weights(parts: Path, case: str, stage: int) -> None:
    resume.check_resumed(parts / f"{case}-{stage}")


def test_two_ranks_then_one_then_two_end_in_the_same_weights(parts: Path, case: str, stage: int) -> None:
    resume.check_rescaled(parts / f"{case}-{stage}")
