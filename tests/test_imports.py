"""Who may import whom, read from the source."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from fewstep.methods import METHODS

ROOT = Path(__file__).resolve().parent.parent
METHOD_FILES = sorted((ROOT / "methods").glob("*.py"))
ORCHESTRATOR_FILES = sorted((ROOT / "orchestrator").rglob("*.py"))
DASHBOARD_FILES = sorted((ROOT / "dashboards").glob("*.py"))
CLUSTER_FILES = sorted((ROOT / "clusters").glob("*.py"))
ALLOWED = {"torch", "methods", *sys.stdlib_module_names}


def tree(file: Path) -> ast.Module:
    """The syntax tree, without the branch that type checkers alone read."""
    module = ast.parse(file.read_text(), str(file))
    module.body = [
        node
        for node in module.body
        if not (isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING")
    ]
    return module


def imported(file: Path) -> Iterator[str]:
    """Top-level packages that a file imports, at any depth of its code."""
    for node in ast.walk(tree(file)):
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield (node.module or "").split(".")[0]


@pytest.mark.parametrize("file", METHOD_FILES, ids=lambda file: file.name)
def test_methods_import_only_torch_and_the_standard_library(file: Path) -> None:
    assert set(imported(file)) <= ALLOWED


@pytest.mark.parametrize("file", DASHBOARD_FILES, ids=lambda file: file.name)
def test_dashboards_know_the_metrics_registry_alone(file: Path) -> None:
    nodes = [node for node in ast.walk(tree(file)) if isinstance(node, ast.ImportFrom | ast.Import)]
    modules = {name for node in nodes for name in ([node.module or ""] if isinstance(node, ast.ImportFrom) else [])}
    modules |= {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    assert {name for name in modules if name.startswith(("orchestrator", "methods"))} <= {
        "orchestrator.observability.metrics"
    }


@pytest.mark.parametrize("file", CLUSTER_FILES, ids=lambda file: file.name)
def test_clusters_import_nothing_of_ours_but_their_own(file: Path) -> None:
    assert not set(imported(file)) & {"methods", "orchestrator", "dashboards", "recipes"}


@pytest.mark.parametrize("file", ORCHESTRATOR_FILES, ids=lambda file: file.name)
def test_the_orchestrator_never_names_a_method(file: Path) -> None:
    modules = {cls.__module__ for cls in METHODS.values()}
    classes = {cls.__name__ for cls in METHODS.values()}
    for node in ast.walk(tree(file)):
        if isinstance(node, ast.Constant):
            assert node.value not in {*METHODS, *classes}, f"line {node.lineno}"
        elif isinstance(node, ast.Name):
            assert node.id not in classes, f"line {node.lineno}"
        elif isinstance(node, ast.alias):
            assert node.name not in classes | modules, f"line {node.lineno}"
        elif isinstance(node, ast.ImportFrom):
            assert node.module not in modules, f"line {node.lineno}"


@pytest.mark.parametrize("file", METHOD_FILES, ids=lambda file: file.name)
def test_random_numbers_are_drawn_through_the_batch(file: Path) -> None:
    if file.name == "base.py":  # where Draw is
        return
    drawing = {"rand", "randn", "randint", "randperm", "rand_like", "randn_like", "randint_like", "normal", "bernoulli"}
    called = {
        node.attr
        for node in ast.walk(tree(file))
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "torch"
    }
    assert not called & drawing
    assert not {"random", "numpy"} & set(imported(file))
