"""A training that was ended and goes on: every method at every ZeRO stage."""

from __future__ import annotations

import pytest

from tests.orchestrator.training.test_resume import (  # noqa: F401 - collected here too, for other cases
    parts,
    pytest_generate_tests,
    test_as_many_ranks_end_in_the_very_same_weights,
    test_two_ranks_then_one_then_two_end_in_the_same_weights,
)
from tests.support import parity

CASES = tuple(parity.CASES)
pytestmark = pytest.mark.slow
