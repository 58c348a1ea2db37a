"""What `import fewstep` hands on, and what the rooms hand on to each other."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

import fewstep
from fewstep.doors import handed_on, lazy
from tests.support.source import ROOT

DOORS = [ROOT / "fewstep/__init__.py", *sorted((ROOT / "orchestrator").glob("*/__init__.py"))]


@pytest.mark.parametrize("door", DOORS, ids=lambda door: door.parent.name)
def test_every_name_is_there_and_is_of_its_own_room_and_no_module(door: Path) -> None:
    for name, (module, attribute) in handed_on(str(door)).items():
        assert lazy(str(door))(name) is getattr(import_module(module), attribute)
        assert not door.with_name(f"{name}.py").exists() and not (door.parent / name).exists()
        if door != DOORS[0]:
            assert module.startswith(f"fewstep.orchestrator.{door.parent.name}.")


def test_a_name_that_is_not_handed_on_is_an_error() -> None:
    with pytest.raises(AttributeError, match="fewstep hands on no 'nonsense'"):
        _ = fewstep.nonsense  # pyright: ignore[reportAttributeAccessIssue]


def test_importing_fewstep_loads_nothing_heavy() -> None:
    code = "import sys, json, fewstep; print(json.dumps(sorted(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert not {"torch", "ray", "diffusers", "pydantic", "pyarrow"} & set(json.loads(done.stdout))


def test_a_recipe_is_loaded_changed_and_forecast_by_functions() -> None:
    recipe = fewstep.load_recipe("emoji-lcm", ["training.steps=7"])
    assert isinstance(recipe, fewstep.Recipe) and recipe.training.steps == 7
    assert fewstep.plan(recipe, offline=True)["rows"] == 640
    with pytest.raises(fewstep.BadInput, match="did you mean 'emoji-lcm'"):
        fewstep.load_recipe("emoji-lmc")
