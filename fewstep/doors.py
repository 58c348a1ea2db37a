"""Packages that hand names on without importing them until they are used."""

from __future__ import annotations

import ast
from collections.abc import Callable
from functools import cache
from importlib import import_module
from pathlib import Path


def lazy(file: str) -> Callable[[str], object]:
    """The `__getattr__` of a package that hands on what `file`, its __init__.py, imports under TYPE_CHECKING.

    Type checkers read those imports; at run time each happens when its name is first asked for, so that a package with
    heavy modules is as quick to import as an empty one.
    """

    def door(name: str) -> object:
        names = handed_on(file)
        if name not in names:
            raise AttributeError(f"{Path(file).parent.name} hands on no {name!r}")
        module, attribute = names[name]
        return getattr(import_module(module), attribute)

    return door


@cache
def handed_on(file: str) -> dict[str, tuple[str, str]]:
    """What a package hands on: for each name the module that defines it, and its name there."""
    return {
        alias.asname or alias.name: (node.module, alias.name)
        for branch in ast.parse(Path(file).read_text()).body
        if isinstance(branch, ast.If) and isinstance(branch.test, ast.Name) and branch.test.id == "TYPE_CHECKING"
        for node in branch.body
        if isinstance(node, ast.ImportFrom) and node.module
        for alias in node.names
    }
