"""Our own source, read and not run: which files there are, and what each imports and binds."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = ("methods", "orchestrator", "clusters", "dashboards", "recipes")  # fewstep/ links to each of them


@dataclass(frozen=True)
class Import:
    """One imported name, dotted: `from a.b import c` imports a.b.c."""

    name: str
    line: int

    def is_of(self, *packages: str) -> bool:
        """Whether it is one of these packages or modules, or something in one."""
        return any(self.name == package or self.name.startswith(f"{package}.") for package in packages)


def files(*folders: str) -> list[Path]:
    """The Python files under folders, relative to the root."""
    found = [file for folder in folders for file in sorted((ROOT / folder).rglob("*.py"))]
    return [file.relative_to(ROOT) for file in found]


def product_files() -> list[Path]:
    """Every Python file that a user installs."""
    return [*files(*FOLDERS), *(file.relative_to(ROOT) for file in sorted((ROOT / "fewstep").glob("*.py")))]


def without_types(tree: ast.Module) -> ast.Module:
    """The module without the branches that type checkers alone read."""

    class Dropped(ast.NodeTransformer):
        def visit_If(self, node: ast.If) -> ast.AST | None:  # noqa: N802 - ast's name
            is_for_types = isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"
            return None if is_for_types else self.generic_visit(node)

    return Dropped().visit(tree)


def imports(tree: ast.AST) -> Iterator[Import]:
    """Every import, at any depth of the code."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (Import(alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            module = "." * node.level + (node.module or "")
            yield from (Import(f"{module}.{alias.name}", node.lineno) for alias in node.names)


def bound_names(tree: ast.AST) -> Iterator[tuple[str, int]]:
    """Every name that code gives to something, with its line: variables, arguments, attributes, functions, aliases."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id, node.lineno
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            yield node.attr, node.lineno
        elif isinstance(node, ast.arg):
            yield node.arg, node.lineno
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield node.name, node.lineno
        elif isinstance(node, ast.alias) and node.asname:
            yield node.asname, node.lineno
