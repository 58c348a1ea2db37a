"""What a user installs: the wheel. That it works where nothing else is installed is of the slow tier."""

from __future__ import annotations

from pathlib import Path
from zipfile import ZipFile

import pytest

from fewstep.orchestrator.submission.bundle import source_files
from tests.support.wheel import build


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("wheel"))


def test_the_wheel_is_small_and_puts_one_package_beside_those_of_others(wheel: Path) -> None:
    assert wheel.stat().st_size <= 25e6
    tops = {name.split("/")[0] for name in ZipFile(wheel).namelist()}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"fewstep"}


def test_a_job_takes_along_the_code_that_the_wheel_holds(wheel: Path) -> None:
    names = {name for name in ZipFile(wheel).namelist() if name.endswith((".py", ".css"))}
    assert names == {*source_files(), "fewstep/recipes/__init__.py"}
