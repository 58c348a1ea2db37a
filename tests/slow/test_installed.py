"""The wheel in an environment with nothing else, used from another folder."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.wheel import ROOT, build, run

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def fewstep(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The command, installed from the wheel with the dependencies that its metadata names."""
    folder = tmp_path_factory.mktemp("installed")
    run(sys.executable, "-m", "venv", folder / "venv", cwd=folder)
    wheel, pip = build(folder), folder / "venv/bin/pip"
    run(pip, "install", "--quiet", "-c", ROOT / "constraints.txt", wheel, cwd=folder)
    return folder / "venv/bin/fewstep"


def test_a_recipe_that_no_wheel_holds_says_where_it_is(fewstep: Path, tmp_path: Path) -> None:
    command = [fewstep, "plan", "compare/emoji/lcm.yaml"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 2 and "comes with fewstep's repository" in " ".join(done.stderr.split())


def test_the_installed_command_lists_the_methods(fewstep: Path, tmp_path: Path) -> None:
    names = [method["name"] for method in json.loads(run(fewstep, "methods", "--json", cwd=tmp_path))["methods"]]
    assert "lcm" in names and names == sorted(names)


def test_the_installed_command_plans_a_recipe_that_came_with_it(fewstep: Path, tmp_path: Path) -> None:
    facts = json.loads(run(fewstep, "plan", "emoji-lcm", "--json", cwd=tmp_path))
    assert facts["rows"] == 640 and facts["committed"] == 0
    assert facts["teacher_evaluations"] == 640 * 50 * 2
