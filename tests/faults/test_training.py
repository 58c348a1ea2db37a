"""Training whose workers and nodes are taken away: it goes on by itself, and ends where it would have ended."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import ray
from ray._private.state import actors
from ray.cluster_utils import Cluster
from safetensors.torch import load_file

from fewstep.orchestrator.observability import metrics
from fewstep.orchestrator.recipe.parsing import parse
from fewstep.orchestrator.recipe.recipe import Recipe
from fewstep.orchestrator.training.checkpoint import broken
from fewstep.orchestrator.workflow import stages
from tests.support import tiny
from tests.support.nodes import drain, lose

pytestmark = pytest.mark.faults
ROUND = "rounds/1-lcm"
STEPS = 300


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> dict:
    """The tiny recipe, with a training that takes a while."""
    folder = tmp_path_factory.mktemp("training")
    data: dict = dict(tiny.recipe_data(folder))
    data["method"] = {"name": "lcm", "teacher_step": "stored", "skip": 250}
    data["trajectories"] |= {"store": str(folder / "store")}
    data["training"] |= {"steps": STEPS, "checkpoint_every": 10, "log_every": 5, "zero_stage": 1}
    data["resources"] = {"workers": 2}
    return data


@pytest.fixture(scope="module")
def calm(data: dict, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The round of an undisturbed run."""
    ray.shutdown()
    recipe = parse(data | {"output": str(tmp_path_factory.mktemp("calm"))})
    stages.train(recipe)
    ray.shutdown()
    return Path(recipe.output) / ROUND


@pytest.fixture
def nodes() -> Iterator[Cluster]:
    """A head, and two nodes that hold one worker each."""
    ray.shutdown()
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    for _ in range(2):
        cluster.add_node(num_cpus=1)
    yield cluster
    ray.shutdown()
    cluster.shutdown()


def disturbed(recipe: Recipe, disturb: Callable[[], None], *, after: int) -> Path:
    """Train, and disturb it once `after` steps are done; its round."""
    folder = Path(recipe.output) / ROUND

    def watch() -> None:
        while metrics.newest(folder / "metrics.jsonl").get("train/step", 0) < after:
            time.sleep(0.1)
        disturb()

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    stages.train(recipe)
    assert not watcher.is_alive(), "training was over before anything happened"
    return folder


def starts(folder: Path) -> list[int]:
    """Where training started, and where it went on."""
    return [int(row["train/step"]) for row in metrics.read(folder / "metrics.jsonl") if "train/recoveries" in row]


def lineage(folder: Path) -> dict:
    return json.loads((folder / "result/lineage.json").read_text())


def apart(folder: Path, other: Path) -> float:
    """The greatest distance of two weights of two results."""
    one, two = (load_file(round / "result/result.safetensors") for round in (folder, other))
    assert one.keys() == two.keys()
    return max(float((one[name] - two[name]).abs().max()) for name in one)


def kill_a_worker() -> None:
    workers = [actor["Pid"] for actor in actors().values() if "TrainWorker" in actor["ActorClassName"]]
    os.kill(workers[-1], signal.SIGKILL)


def test_a_worker_that_is_killed_costs_what_came_after_its_last_checkpoint(
    data: dict, calm: Path, tmp_path: Path
) -> None:
    folder = disturbed(parse(data | {"output": str(tmp_path)}), kill_a_worker, after=30)
    first, again = starts(folder)
    assert first == 0 and again >= 20
    assert lineage(folder)["batches"] == lineage(calm)["batches"] and apart(folder, calm) == 0


def test_training_goes_on_with_the_nodes_that_are_left(data: dict, calm: Path, nodes: Cluster, tmp_path: Path) -> None:
    resources = {"workers": 2, "min_workers": 1, "address": nodes.address}
    recipe = parse(data | {"resources": resources, "output": str(tmp_path)})
    folder = disturbed(recipe, lambda: lose(nodes), after=30)
    first, again = starts(folder)
    assert first == 0 and again >= 20
    assert lineage(folder)["batches"] == lineage(calm)["batches"] and apart(folder, calm) < 1e-3


def test_a_nodes_notice_leads_to_a_checkpoint(data: dict, calm: Path, nodes: Cluster, tmp_path: Path) -> None:
    training = data["training"] | {"checkpoint_every": STEPS}  # never by itself
    resources = {"workers": 2, "min_workers": 1, "address": nodes.address}
    recipe = parse(data | {"training": training, "resources": resources, "output": str(tmp_path)})
    folder = disturbed(recipe, lambda: drain(nodes), after=30)
    (saved,) = (folder / "checkpoints").iterdir()
    assert broken(saved) == "" and 30 <= int(saved.name.split("-")[1]) < STEPS
    assert lineage(folder)["batches"] == lineage(calm)["batches"]
