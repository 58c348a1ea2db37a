"""What a user installs: the wheel, in an environment with nothing else, used from another folder."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from zipfile import ZipFile

import pytest

from fewstep.orchestrator.submission.bundle import source_files

ROOT = Path(__file__).parents[1]


def run(*command: str | Path, cwd: Path) -> str:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    done = subprocess.run([str(part) for part in command], cwd=cwd, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    run(sys.executable, "-m", "build", "--wheel", "--outdir", folder, ROOT, cwd=folder)
    (file,) = folder.glob("*.whl")
    return file


@pytest.fixture(scope="module")
def fewstep(wheel: Path) -> Path:
    """The command, installed from the wheel with the dependencies that its metadata names."""
    folder = wheel.parent
    run(sys.executable, "-m", "venv", folder / "venv", cwd=folder)
    run(folder / "venv/bin/pip", "install", "--quiet", "-c", ROOT / "constraints.txt", wheel, cwd=folder)
    return folder / "venv/bin/fewstep"


def test_the_wheel_is_small_and_puts_one_package_beside_those_of_others(wheel: Path) -> None:
    assert wheel.stat().st_size <= 25e6
    tops = {name.split("/")[0] for name in ZipFile(wheel).namelist()}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"fewstep"}


def test_a_job_takes_along_the_code_that_the_wheel_holds(wheel: Path) -> None:
    names = {name for name in ZipFile(wheel).namelist() if name.endswith((".py", ".css"))}
    assert names == {*source_files(), "fewstep/recipes/__init__.py"}


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
