"""Names say what a thing is, not what was done to it; and one name is one thing."""

from __future__ import annotations

import ast
from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path

from tests.support.source import ROOT, bound_names, product_files

BANNED = {"told", "found", "made", "given", "said", "place", "part", "asked", "taken", "held"}
EXCEPTIONS: Mapping[str, str] = {}  # file:name and why it may stay; five at most
TRAVELLING = ("recipes/teachers", "orchestrator/pipelines")  # exported folders hold copies of these


def banned_names(file: Path, tree: ast.Module) -> Iterator[str]:
    """Where a banned name is bound."""
    for name, line in bound_names(tree):
        if name in BANNED and f"{file}:{name}" not in EXCEPTIONS:
            yield f"{file}, line {line}: {name}"


def names_of_two_classes(trees: Mapping[Path, ast.Module]) -> dict[str, list[Path]]:
    """Names that more than one file gives a class, each with its files."""
    files = defaultdict[str, list[Path]](list)
    for file, tree in trees.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.ClassDef) and not str(file).startswith(TRAVELLING):
                files[node.name].append(file)
    return {name: where for name, where in files.items() if len(where) > 1}


def product() -> dict[Path, ast.Module]:
    return {file: ast.parse((ROOT / file).read_text()) for file in product_files()}


def test_no_name_is_banned() -> None:
    assert len(EXCEPTIONS) <= 5
    assert [offence for file, tree in product().items() for offence in banned_names(file, tree)] == []


def test_no_two_classes_have_one_name() -> None:
    assert names_of_two_classes(product()) == {}


def test_a_planted_name_is_seen_wherever_it_is_bound() -> None:
    sources = (
        "told = 1",
        "for place in range(3): pass",
        "def f(given): pass",
        "self.held = 1",
        "import numpy as taken",
        "[part for part in parts]",
        "with open('x') as found: pass",
        "class Memory:\n    asked: int",
        "(made := 1)",
        "async def said(): pass",
    )
    for source in sources:
        assert list(banned_names(Path("new.py"), ast.parse(source))), source
    assert not list(banned_names(Path("new.py"), ast.parse("recipe = asked_before = 'told'")))


def test_a_planted_class_of_another_s_name_is_seen() -> None:
    tree = ast.parse("class Memory: pass")
    assert names_of_two_classes({Path("a.py"): tree, Path("b.py"): tree}) == {"Memory": [Path("a.py"), Path("b.py")]}
