"""Who may import whom, read from the source. Every rule is shown to see a violation that is planted."""

from __future__ import annotations

import ast
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest

from fewstep.methods import METHODS
from tests.support.source import FOLDERS, ROOT, files, imports, product_files, without_types

# The rooms of the orchestrator. Each may import those before it, and none behind it: no circle can arise.
ROOMS = (
    *("errors", "files", "pipelines", "observability", "storage", "sampling", "inputs"),  # the ground
    *("recipe", "runs", "compute"),  # what a run is asked, where it is written, where it is computed
    *("families", "engines", "teachers", "features", "datasets", "dataloader", "students"),  # the nouns
    *("evaluation", "planning", "training", "generation", "reports"),  # the verbs
    *("workflow", "search", "submission", "cli"),  # what puts them in order
)
# By which rooms a library comes into the orchestrator. Where it is not listed, any room may use it.
LIBRARIES = {
    "botocore": {"storage"},
    "deepspeed": {"engines", "training"},
    "fsspec": set[str](),
    "huggingface_hub": {"planning", "reports"},
    "lpips": {"features"},
    "matplotlib": {"observability", "search"},
    "mlflow": {"observability"},
    "optuna": {"search"},
    "peft": {"families", "students"},
    "pyarrow": {"inputs", "datasets", "search"},
    "ray": {"compute", "evaluation", "generation", "observability", "planning", "search", "training"},
    "requests": set[str](),
    "s3fs": {"storage"},
    "safetensors": {"families", "students", "training"},
    "tensorboard": {"observability"},
    "torchvision": {"features"},
    "transformers": {"features", "workflow"},
    "typer": {"cli"},
    "wandb": {"observability"},
}
OURS = "fewstep"
METRICS = "fewstep.orchestrator.observability.metrics"
DRAWING = {"rand", "randn", "randint", "randperm", "rand_like", "randn_like", "randint_like", "normal", "bernoulli"}

Offences = Iterator[str]


@dataclass(frozen=True)
class Rule:
    """What no file of some folders may do."""

    where: Callable[[], list[Path]]
    offences: Callable[[Path, ast.Module], Offences]
    planted: tuple[tuple[str, str], ...]  # a file's place and source that break it


def room_of(file: Path) -> str:
    """orchestrator/ROOM/module.py, or orchestrator/ROOM.py."""
    return file.parts[1].removesuffix(".py")


def methods_import_torch_alone(file: Path, tree: ast.Module) -> Offences:
    allowed = ("torch", "fewstep.methods", *sys.stdlib_module_names)
    return (f"line {each.line}: {each.name}" for each in imports(without_types(tree)) if not each.is_of(*allowed))


def methods_draw_through_the_batch(file: Path, tree: ast.Module) -> Offences:
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "torch":
            if node.attr in DRAWING:
                yield f"line {node.lineno}: torch.{node.attr}"
    yield from (f"line {each.line}: {each.name}" for each in imports(tree) if each.is_of("random", "numpy", "secrets"))


def the_orchestrator_names_no_method(file: Path, tree: ast.Module) -> Offences:
    classes = {cls.__name__ for cls in METHODS.values()}
    modules = {cls.__module__ for cls in METHODS.values()}
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and node.value in {*METHODS, *classes}:
            yield f"line {node.lineno}: {node.value!r}"
        elif isinstance(node, ast.Name) and node.id in classes:
            yield f"line {node.lineno}: {node.id}"
    yield from (f"line {each.line}: {each.name}" for each in imports(tree) if each.is_of(*modules))


def a_room_imports_what_stands_before_it(file: Path, tree: ast.Module) -> Offences:
    allowed = ROOMS[: ROOMS.index(room_of(file)) + 1]
    rooms = tuple(f"fewstep.orchestrator.{room}" for room in allowed)
    for each in imports(tree):
        if each.is_of("fewstep.orchestrator") and not each.is_of(*rooms):
            yield f"line {each.line}: {each.name}"


def the_orchestrator_leaves_the_dashboards_alone(file: Path, tree: ast.Module) -> Offences:
    strangers = ("fewstep.dashboards", "fewstep.recipes", "tests")
    return (f"line {each.line}: {each.name}" for each in imports(tree) if each.is_of(*strangers))


def libraries_come_in_by_their_rooms(file: Path, tree: ast.Module) -> Offences:
    closed = tuple(name for name, rooms in LIBRARIES.items() if room_of(file) not in rooms)
    return (f"line {each.line}: {each.name}" for each in imports(tree) if each.is_of(*closed))


def exported_code_stands_alone(file: Path, tree: ast.Module) -> Offences:
    return (f"line {each.line}: {each.name}" for each in imports(tree) if each.is_of(OURS))


def dashboards_know_the_metrics_alone(file: Path, tree: ast.Module) -> Offences:
    known = ("fewstep.dashboards", METRICS)
    return (f"line {each.line}: {each.name}" for each in imports(tree) if each.is_of(OURS) and not each.is_of(*known))


def clusters_know_their_own_alone(file: Path, tree: ast.Module) -> Offences:
    own = "fewstep.clusters"
    return (f"line {each.line}: {each.name}" for each in imports(tree) if each.is_of(OURS) and not each.is_of(own))


def everything_is_imported_from_one_root(file: Path, tree: ast.Module) -> Offences:
    """`methods.lcm` and `fewstep.methods.lcm` would be two modules, and their classes strangers to each other."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            words = node.value.split(".")
            if len(words) > 1 and words[0] in FOLDERS and all(word.isidentifier() for word in words):
                if (ROOT / words[0] / f"{words[1]}.py").exists() or (ROOT / words[0] / words[1]).is_dir():
                    yield f"line {node.lineno}: {node.value!r}"
    yield from (
        f"line {each.line}: {each.name}" for each in imports(tree) if each.is_of(*FOLDERS) or each.name[0] == "."
    )


def what_tests_share_is_in_support(file: Path, tree: ast.Module) -> Offences:
    for each in imports(tree):
        if any(word == "conftest" or word.startswith("test_") for word in each.name.split(".")):
            yield f"line {each.line}: {each.name}"


def in_folder(*folders: str) -> Callable[[], list[Path]]:
    return lambda: files(*folders)


def rooms() -> list[Path]:
    """The orchestrator without its empty door."""
    return [file for file in files("orchestrator") if file != Path("orchestrator/__init__.py")]


def losses() -> list[Path]:
    """All of methods/ but the file that Draw is in."""
    (draw,) = (file for file in files("methods") if "class Draw:" in (ROOT / file).read_text())
    return [file for file in files("methods") if file != draw]


RULES = (
    Rule(
        in_folder("methods"),
        methods_import_torch_alone,
        (
            ("methods/new.py", "import numpy"),
            ("methods/new.py", "def loss():\n    from fewstep.orchestrator.recipe import Recipe"),
            ("methods/new.py", "from fewstep import run"),
            ("methods/new.py", "import torchvision"),
        ),
    ),
    Rule(
        losses,
        methods_draw_through_the_batch,
        (("methods/new.py", "noise = torch.randn_like(x0)"), ("methods/new.py", "from random import random")),
    ),
    Rule(
        in_folder("orchestrator"),
        the_orchestrator_names_no_method,
        (
            ("orchestrator/training/new.py", "is_lcm = recipe.method.name == 'lcm'"),
            ("orchestrator/training/new.py", "from fewstep.methods.lcm import lcm_loss"),
            ("orchestrator/training/new.py", "from fewstep.methods import lcm"),
            ("orchestrator/training/new.py", "isinstance(method, Progressive)"),
        ),
    ),
    Rule(
        rooms,
        a_room_imports_what_stands_before_it,
        (
            ("orchestrator/storage/new.py", "from fewstep.orchestrator.recipe.recipe import Recipe"),
            ("orchestrator/storage/new.py", "from fewstep.orchestrator import recipe"),
            ("orchestrator/storage/new.py", "def late():\n    import fewstep.orchestrator.cli.main"),
            ("orchestrator/errors.py", "from fewstep.orchestrator.files import write_whole"),
        ),
    ),
    Rule(
        in_folder("orchestrator"),
        the_orchestrator_leaves_the_dashboards_alone,
        (("orchestrator/cli/new.py", "from fewstep.dashboards import panels"),),
    ),
    Rule(
        rooms,
        libraries_come_in_by_their_rooms,
        (
            ("orchestrator/recipe/new.py", "import ray"),
            ("orchestrator/students/new.py", "from deepspeed.ops.adam import FusedAdam"),
            ("orchestrator/reports/new.py", "def late():\n    import pyarrow.parquet as pq"),
            ("orchestrator/files.py", "from s3fs import S3FileSystem"),
        ),
    ),
    Rule(
        in_folder("orchestrator/pipelines"),
        exported_code_stands_alone,
        (("orchestrator/pipelines/new.py", "from fewstep.methods.diffusion import Estimate"),),
    ),
    Rule(
        in_folder("dashboards"),
        dashboards_know_the_metrics_alone,
        (("dashboards/new.py", "from fewstep.orchestrator.recipe.recipe import Recipe"),),
    ),
    Rule(
        in_folder("clusters"),
        clusters_know_their_own_alone,
        (("clusters/new.py", "from fewstep.orchestrator.errors import BadInput"),),
    ),
    Rule(
        lambda: [*product_files(), *files("tests")],
        everything_is_imported_from_one_root,
        (
            ("tests/new.py", "from methods import METHODS"),
            ("orchestrator/new.py", "import orchestrator.recipe"),
            ("orchestrator/new.py", "from .recipe import Recipe"),
            ("clusters/new.py", "command = ['python', '-m', 'orchestrator.cli']"),
            ("tests/new.py", "monkeypatch.setattr('methods.lcm.lcm_loss', None)"),
        ),
    ),
    Rule(
        in_folder("tests"),
        what_tests_share_is_in_support,
        (
            ("tests/new.py", "from tests.conftest import fill"),
            ("tests/support/new.py", "def late():\n    from tests.methods import test_lcm"),
        ),
    ),
)
NAMES = [rule.offences.__name__ for rule in RULES]


@pytest.mark.parametrize("rule", RULES, ids=NAMES)
def test_no_file_breaks_the_rule(rule: Rule) -> None:
    where = [file for file in rule.where() if file != Path(__file__).relative_to(ROOT)]  # which plants violations
    assert where
    offences = [
        f"{file}, {offence}" for file in where for offence in rule.offences(file, ast.parse((ROOT / file).read_text()))
    ]
    assert not offences, "\n".join(offences)


@pytest.mark.parametrize(
    ("rule", "file", "source"),
    [(rule, *planted) for rule in RULES for planted in rule.planted],
    ids=[f"{rule.offences.__name__}-{i}" for rule in RULES for i in range(len(rule.planted))],
)
def test_a_planted_violation_is_seen(rule: Rule, file: str, source: str) -> None:
    assert any(other.parts[0] == Path(file).parts[0] for other in rule.where())
    assert list(rule.offences(Path(file), ast.parse(source)))


def circles(graph: Mapping[str, set[str]]) -> list[str]:
    """The modules that import themselves by way of others."""

    def reached(start: str) -> set[str]:
        seen, ahead = set[str](), list(graph[start])
        while ahead:
            if (module := ahead.pop()) not in seen:
                seen.add(module)
                ahead += graph[module]
        return seen

    return [module for module in graph if module in reached(module)]


def test_no_two_modules_import_each_other() -> None:
    modules = {f"fewstep.{'.'.join(file.with_suffix('').parts)}": file for file in files("methods", "orchestrator")}
    graph = {
        module: {
            other
            for each in imports(without_types(ast.parse((ROOT / file).read_text())))
            for other in (each.name, each.name.rpartition(".")[0])
            if other in modules
        }
        for module, file in modules.items()
    }
    assert circles(graph) == []


def test_a_planted_circle_is_seen() -> None:
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"b"}}) == ["b", "c"]


def test_every_room_has_its_place() -> None:
    rooms = {path.stem for path in (ROOT / "orchestrator").iterdir() if path.suffix in ("", ".py")}
    assert rooms - {"__init__", "__pycache__"} == set(ROOMS)


def test_no_room_has_more_than_a_dozen_files() -> None:
    rooms = set(ROOMS) - {"families"}  # which has one file per kind of pipeline
    sizes = {room: len(list((ROOT / "orchestrator" / room).glob("[!_]*.py"))) for room in rooms}
    assert {room: size for room, size in sizes.items() if size > 12} == {}
