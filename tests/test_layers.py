"""Which room of the orchestrator may import which: the ones before it in this list."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ORCHESTRATOR = Path(__file__).resolve().parent.parent / "orchestrator"
ROOMS = (
    *("errors", "files", "pipelines", "observability", "storage", "sampling", "inputs"),  # the ground
    *("recipe", "runs", "compute"),  # what is told, where it is written, where it is computed
    *("families", "engines", "teachers", "datasets", "dataloader", "students"),  # the nouns
    *("evaluation", "planning", "training", "generation", "reports"),  # the verbs
    *("workflow", "search", "submission", "cli"),  # who puts them in order
)


def test_every_room_has_its_place() -> None:
    found = {path.stem for path in ORCHESTRATOR.iterdir() if path.stem not in ("__init__", "__pycache__")}
    assert found == set(ROOMS)


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_imports_only_what_stands_before_it(room: str) -> None:
    allowed = {room, *ROOMS[: ROOMS.index(room)]}
    for file in sorted(ORCHESTRATOR.rglob("*.py")):
        if file.relative_to(ORCHESTRATOR).parts[0].removesuffix(".py") != room:
            continue
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("orchestrator"):
                _, *inner = (node.module or "").split(".")
                for name in inner[:1] or [alias.name for alias in node.names]:
                    assert name in allowed, f"{file.name}, line {node.lineno}"
