"""All tests of a tier, and a record of how they went beside them: `make faults`, `make slow`.

python -m tests.tier slow -k search     # some of them: the record keeps what it has of the others
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import pytest

from tests.support.record import commit_of, write_record

TIERS = ("faults", "slow")


class Record:
    """What pytest reports of each test."""

    def __init__(self, commit: str) -> None:
        self.tests, self._commit = dict[str, dict[str, object]](), commit

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Keep the outcome and the seconds of the test itself, or of what stopped it."""
        if report.when == "call" or report.outcome != "passed":
            told = {"outcome": report.outcome, "seconds": round(report.duration, 1), "commit": self._commit}
            self.tests[report.nodeid] = told


def main() -> int:
    """Run the tier's folder and write results.json there."""
    parser = argparse.ArgumentParser(prog="python -m tests.tier", description=__doc__)
    parser.add_argument("tier", choices=TIERS)
    told, pytest_arguments = parser.parse_known_args()
    folder = Path(__file__).parent / told.tier
    record, file = Record(commit_of(folder)), folder / "results.json"
    code = pytest.main([str(folder), "-m", "", *pytest_arguments], plugins=[record])
    known = json.loads(file.read_text())["tests"] if pytest_arguments and file.exists() else {}
    write_record(folder, {"tests": {**known, **record.tests}})
    return int(code)


if __name__ == "__main__":
    raise SystemExit(main())
