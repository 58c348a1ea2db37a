"""All fault tests, and a record of how they went: `make faults`."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tests.record import write_record

HERE = Path(__file__).parent


class Record:
    """What pytest reports of each test."""

    def __init__(self) -> None:
        self.tests = dict[str, dict[str, object]]()

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Keep the outcome and the seconds of the test itself, or of what stopped it."""
        if report.when == "call" or report.outcome != "passed":
            self.tests[report.nodeid] = {"outcome": report.outcome, "seconds": round(report.duration, 1)}


def main() -> int:
    """Run them and write results.json beside this file."""
    record = Record()
    code = pytest.main([str(HERE), "-m", "faults or not faults", *sys.argv[1:]], plugins=[record])
    write_record(HERE, {"tests": record.tests})
    return int(code)


if __name__ == "__main__":
    raise SystemExit(main())
