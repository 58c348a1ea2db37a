"""All tests of a tier, and a record of how they went beside them: `make faults`, `make slow`."""

from __future__ import annotations

import argparse
from pathlib import Path

import pytest

from tests.record import write_record

TIERS = ("faults", "slow")


class Record:
    """What pytest reports of each test."""

    def __init__(self) -> None:
        self.tests = dict[str, dict[str, object]]()

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Keep the outcome and the seconds of the test itself, or of what stopped it."""
        if report.when == "call" or report.outcome != "passed":
            self.tests[report.nodeid] = {"outcome": report.outcome, "seconds": round(report.duration, 1)}


def main() -> int:
    """Run the tier's folder and write results.json there."""
    parser = argparse.ArgumentParser(prog="python -m tests.tier", description=__doc__)
    parser.add_argument("tier", choices=TIERS)
    told, pytest_arguments = parser.parse_known_args()
    folder, record = Path(__file__).parent / told.tier, Record()
    code = pytest.main([str(folder), "-m", "", *pytest_arguments], plugins=[record])
    write_record(folder, {"tests": record.tests})
    return int(code)


if __name__ == "__main__":
    raise SystemExit(main())
