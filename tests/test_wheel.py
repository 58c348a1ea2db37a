"""What a user installs: the wheel, in an environment with nothing else, used from another folder."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def run(*command: str | Path, cwd: Path) -> str:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    done = subprocess.run([str(part) for part in command], cwd=cwd, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]
    return done.stdout


@pytest.fixture(scope="module")
def fewstep(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The command, installed from the wheel with the dependencies that its metadata names."""
    folder = tmp_path_factory.mktemp("wheel")
    run(sys.executable, "-m", "build", "--wheel", "--outdir", folder, ROOT, cwd=folder)
    run(sys.executable, "-m", "venv", folder / "venv", cwd=folder)
    (wheel,) = folder.glob("*.whl")
    run(folder / "venv/bin/pip", "install", "--quiet", "-c", ROOT / "constraints.txt", wheel, cwd=folder)
    return folder / "venv/bin/fewstep"


def test_the_installed_command_lists_the_methods(fewstep: Path, tmp_path: Path) -> None:
    names = [method["name"] for method in json.loads(run(fewstep, "methods", "--json", cwd=tmp_path))["methods"]]
    assert "lcm" in names and names == sorted(names)


def test_the_installed_command_plans_a_recipe_that_came_with_it(fewstep: Path, tmp_path: Path) -> None:
    facts = json.loads(run(fewstep, "plan", "emoji-lcm", "--json", cwd=tmp_path))
    assert facts["rows"] == 640 and facts["committed"] == 0
    assert facts["teacher_evaluations"] == 640 * 50 * 2
