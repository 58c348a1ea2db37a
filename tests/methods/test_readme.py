"""The method that methods/README.md shows is a whole one, and learns."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

from fewstep.methods.base import Method
from tests.support import mixture
from tests.support.source import ROOT

README = ROOT / "methods" / "README.md"


@pytest.fixture
def example(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """The example as a module."""
    (block,) = [block for block in README.read_text().split("```python\n") if "def rounds(" in block]
    (tmp_path / "regression.py").write_text(block.partition("```")[0])
    monkeypatch.syspath_prepend(tmp_path)
    yield importlib.import_module("regression")
    del sys.modules["regression"]


def test_the_readmes_method_learns_the_teachers_samples(example: ModuleType) -> None:
    method: Method = example.Regression()
    (round_,) = method.rounds()
    noise_levels = mixture.schedule()
    path, _ = mixture.rows(512, noise_levels, steps=10, scales=(1.0, 1.0))
    ends = {"noise": path.path[:, 0], "x0": path.path[:, -1], "guidance_scale": path.guidance_scale}
    pairs = type(path)(ends, path.cond, path.uncond)
    nets = mixture.networks(round_, noise_levels)

    def error() -> float:
        return mixture.root_mean_square(mixture.one_step(nets["student"], pairs.noise, pairs.cond), pairs.x0)

    untrained = error()
    mixture.train(round_, nets, {"pairs": pairs}, steps=300)
    assert error() < untrained / 2


def test_the_readmes_method_refuses_what_methods_refuse(example: ModuleType) -> None:
    with pytest.raises(ValueError, match="student_steps must be at least 1, got 0"):
        example.Regression(student_steps=0)


def test_the_readme_names_every_file() -> None:
    files = {file.name for file in README.parent.glob("*.py")} - {"__init__.py"}
    assert [file for file in sorted(files) if f"]({file})" not in README.read_text()] == []
