"""A training that was ended and goes on: every method at every ZeRO stage."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support import parity, resume

pytestmark = pytest.mark.slow
CASES = tuple(parity.CASES)
each = pytest.mark.parametrize(("case", "stage"), resume.pairs_of(CASES))


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of every case, at every stage."""
    folder = tmp_path_factory.mktemp("resume")
    resume.run(CASES, folder)
    return folder


@each
def test_as_many_ranks_end_in_the_very_same_weights(parts: Path, case: str, stage: int) -> None:
    resume.check_resumed(parts / f"{case}-{stage}")


@each
def test_two_ranks_then_one_then_two_end_in_the_same_weights(parts: Path, case: str, stage: int) -> None:
    resume.check_rescaled(parts / f"{case}-{stage}")
