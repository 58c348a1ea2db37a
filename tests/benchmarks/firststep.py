"""What passes before the first training step is done: `fewstep train` on a tiny recipe that has its data.

    python -m tests.benchmarks.firststep [--repeats 3]

Each repeat is a process of its own, which starts a cluster of its own. A task is asked what the teacher is, which
names the data; then the student's worker starts. Seconds of both and of the driver, by what they went to:
ray: its start, from the asking to the task's first line, and from Ray Train's start to the worker's
imports: of the command in the driver, interpreter included, and of what the task and the worker need
teacher: reading the pipeline, by diffusers
deepspeed: its initialisation
step: the first step itself
ours: all else
What DeepSpeed compiles at first use would lie in TORCH_EXTENSIONS_DIR, which is empty at the start. Prints JSON.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, ParamSpec, TypeVar, cast

import psutil

from tests.benchmarks.ratio import Row, median_of, show

if TYPE_CHECKING:  # its import is one of the parts
    from fewstep.orchestrator.recipe.recipe import Recipe

Arguments = ParamSpec("Arguments")
Answer = TypeVar("Answer")
OTHERS = ("ray", "imports", "teacher", "deepspeed", "step")


@dataclass
class Parts:
    """Seconds of one process by what they went to, one after another."""

    seconds: dict[str, list[float]] = field(default_factory=dict)

    @property
    def sums(self) -> dict[str, float]:
        """Of each part."""
        return {name: sum(spent) for name, spent in self.seconds.items()}

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """What is done inside is that part's."""
        started = time.time()
        try:
            yield
        finally:
            self.seconds.setdefault(name, []).append(time.time() - started)

    def timed(self, name: str, act: Callable[Arguments, Answer]) -> Callable[Arguments, Answer]:
        """The same function, whose seconds are that part's."""

        @functools.wraps(act)
        def wrapped(*arguments: Arguments.args, **told: Arguments.kwargs) -> Answer:
            with self.part(name):
                return act(*arguments, **told)

        return wrapped


def driver(recipe: str, notes: str) -> None:
    """`fewstep train` with a watch in its hand; writes two files whose names begin with `notes`."""
    parts = Parts({"imports": [time.time() - psutil.Process().create_time()]})
    with parts.part("imports"):
        import ray
        import yaml

        from fewstep.orchestrator.generation import data_sets
        from fewstep.orchestrator.recipe.parsing import parse
        from fewstep.orchestrator.training import driver as train
        from fewstep.orchestrator.workflow import stages
    ray.init = parts.timed("ray", ray.init)
    ask, fit = data_sets.run_task, train.fit

    def asked(task: object, *arguments: object) -> object:
        Path(f"{notes}-asked.json").write_text(json.dumps({"asked": time.time()}))
        return ask(lambda recipe: described(notes, recipe), *arguments)  # pyright: ignore[reportArgumentType]

    def fitted(*arguments: object) -> None:
        told = {"began": psutil.Process().create_time(), "fitted": time.time(), **parts.sums}
        Path(f"{notes}-driver.json").write_text(json.dumps(told))
        fit(*arguments)  # pyright: ignore[reportArgumentType]

    data_sets.run_task, train.fit, train.train_worker = asked, fitted, functools.partial(worker, notes)
    stages.train(parse(yaml.safe_load(Path(recipe).read_text())))


def described(notes: str, recipe: Recipe) -> object:
    """What a task says of the teacher."""
    entered, parts = time.time(), Parts()
    with parts.part("imports"):
        import fewstep.orchestrator.planning.preflight  # noqa: F401 - the task is about to
        from fewstep.orchestrator.generation import data_sets
        from fewstep.orchestrator.teachers import teacher as teachers
    teachers.Teacher = parts.timed("teacher", teachers.Teacher)  # pyright: ignore[reportAttributeAccessIssue]
    card = data_sets._describe(recipe)
    Path(f"{notes}-task.json").write_text(json.dumps({"entered": entered, **parts.sums}))
    return card


def worker(notes: str, config: Mapping[str, dict[str, object]]) -> object:
    """One rank of a round of one step."""
    entered, parts = time.time(), Parts()
    with parts.part("imports"):
        from fewstep.orchestrator.engines.deepspeed import import_deepspeed
        from fewstep.orchestrator.training import driver as train
        from fewstep.orchestrator.training import round_trainer as trainer

        deepspeed = import_deepspeed()
    deepspeed.initialize = parts.timed("deepspeed", deepspeed.initialize)
    trainer.Teacher = parts.timed("teacher", trainer.Teacher)
    loop = parts.timed("step", trainer.train)

    def stepped(*arguments: object, **told: object) -> None:
        loop(*arguments, **told)  # pyright: ignore[reportArgumentType]
        told = {"entered": entered, "stepped": time.time(), **parts.sums}
        Path(f"{notes}-worker.json").write_text(json.dumps(told))

    trainer.train = stepped
    return train.train_worker(config)


def measure(recipe: Path, folder: Path) -> dict[str, float]:
    """The parts of one run."""
    notes, helpers = folder / "notes", folder / "helpers"
    helpers.mkdir(parents=True)
    code = f"from tests.benchmarks.firststep import driver; driver({str(recipe)!r}, {str(notes)!r})"
    told = os.environ | {"TORCH_EXTENSIONS_DIR": str(helpers)}
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, env=told)
    asked, task, first, then = (
        json.loads(Path(f"{notes}-{who}.json").read_text()) for who in ("asked", "task", "driver", "worker")
    )
    found = {name: sum(told.get(name, 0.0) for told in (task, first, then)) for name in OTHERS}
    found["ray"] += task["entered"] - asked["asked"] + then["entered"] - first["fitted"]
    found["total"] = then["stepped"] - first["began"]
    found["ours"] = found["total"] - sum(found[name] for name in OTHERS)
    return {**found, "compiled": sum(file.is_file() for file in helpers.rglob("*"))}


def main(repeats: int) -> Iterator[Row]:
    """Measure."""
    import yaml

    from fewstep.orchestrator.recipe.recipe import Recipe
    from fewstep.orchestrator.workflow import datasets
    from tests.support import tiny

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        data = tiny.recipe_data(folder)
        told = cast(dict[str, dict[str, object]], data)
        told["trajectories"]["store"] = str(folder / "store")
        told["training"] |= {"steps": 1, "zero_stage": 1}
        datasets.generate(Recipe.model_validate(data))
        runs = []
        for number in range(repeats):
            recipe = folder / f"{number}.yaml"
            recipe.write_text(yaml.safe_dump({**data, "output": str(folder / f"run{number}")}))
            runs.append(measure(recipe, folder / f"notes{number}"))
    names = (*OTHERS, "ours", "total")
    parts = {f"{name}_s": round(statistics.median(run[name] for run in runs), 2) for name in names}
    of_smallest = [run["ours"] / min(run[name] for name in ("ray", "imports", "deepspeed")) for run in runs]
    yield {"benchmark": "first training step, ours", **median_of(of_smallest), **parts}
    yield {"benchmark": "first training step, files that are compiled", **median_of([run["compiled"] for run in runs])}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=3)
    show(main(parser.parse_args().repeats))
