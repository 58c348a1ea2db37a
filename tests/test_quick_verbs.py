"""Commands that only look something up do not wait for the libraries that train."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from fewstep.orchestrator.datasets.commit_log import CommitLog
from fewstep.orchestrator.recipe.recipe import Recipe
from fewstep.orchestrator.runs.run import Run

HEAVY = ("accelerate", "deepspeed", "diffusers", "peft", "torch", "transformers")
QUICK = ("methods", "jobs list", "watch --once", "report", "verify", "clean", "recipe --fields")
RUN = """
import json, sys
from fewstep.orchestrator.cli.main import main
code = 0
try:
    main()
except SystemExit as end:
    code = end.code
print("\\n" + json.dumps({"code": code, "loaded": sorted(sys.modules)}))
"""


def modules_after(*words: str | Path, state: Path) -> set[str]:
    """What is loaded in a process once it has run a command, which must succeed."""
    command = [sys.executable, "-c", RUN, *map(str, words)]
    environment = {**os.environ, "XDG_STATE_HOME": str(state)}
    done = subprocess.run(command, capture_output=True, text=True, cwd=state, env=environment, check=False)
    facts = json.loads(done.stdout.splitlines()[-1])
    assert facts["code"] in (0, None), done.stderr[-2000:]
    return set(facts["loaded"])


@pytest.fixture
def run_folder(recipe_data: Mapping[str, object], tmp_path: Path) -> Path:
    return Run(Recipe.model_validate({**recipe_data, "output": str(tmp_path / "run")})).folder


@pytest.mark.parametrize(
    "verb", ["methods", "jobs list", "watch --once", "report", "verify", "clean", "recipe --fields"]
)
def test_a_command_that_looks_up_loads_neither_torch_nor_ray(
    verb: str, run_folder: Path, finished: CommitLog, tmp_path: Path
) -> None:
    subjects = {"watch": [run_folder], "report": [run_folder], "verify": [finished.url], "clean": [finished.url]}
    words = [*verb.split(), *subjects.get(verb.split()[0], [])]
    assert not {*HEAVY, "ray"} & modules_after(*words, state=tmp_path)


def test_a_picture_of_paths_is_decoded_elsewhere(finished: CommitLog, tmp_path: Path) -> None:
    picture = tmp_path / "paths.png"
    loaded = modules_after("trajectories", "show", finished.url, f"--out={picture}", state=tmp_path)
    assert picture.exists() and "ray" in loaded and not {*HEAVY} & loaded


def test_the_driver_that_generates_loads_no_pipelines(recipe_data: Mapping[str, object], tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.json"  # which is YAML too
    recipe.write_text(json.dumps({**recipe_data, "output": str(tmp_path / "run")}))
    assert not {"deepspeed", "diffusers", "transformers"} & modules_after("generate", recipe, state=tmp_path)


def test_a_library_that_comes_to_be_loaded_is_seen(tmp_path: Path) -> None:
    code = RUN.replace("main()\n", "import torch\n    main()\n", 1)
    done = subprocess.run([sys.executable, "-c", code, "methods"], capture_output=True, text=True, check=False)
    assert {*HEAVY} & set(json.loads(done.stdout.splitlines()[-1])["loaded"])
