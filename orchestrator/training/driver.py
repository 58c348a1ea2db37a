"""Trains one round after another, each on Ray Train's workers."""

from __future__ import annotations

import shutil
import threading
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import ray
import ray.train
import torch
from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchConfig, TorchTrainer, get_device

from fewstep.orchestrator.compute.cluster import require, worker_bundle
from fewstep.orchestrator.datasets.dataset import Dataset
from fewstep.orchestrator.datasets.sources import DatasetKind, check_sources, dataset_kinds
from fewstep.orchestrator.engines.rank import Rank
from fewstep.orchestrator.errors import Abandoned, BadInput, Diverged
from fewstep.orchestrator.observability import metrics
from fewstep.orchestrator.observability.console import progress, say
from fewstep.orchestrator.recipe.parsing import parse
from fewstep.orchestrator.recipe.recipe import Recipe
from fewstep.orchestrator.runs.run import RESULT, Run
from fewstep.orchestrator.training.round_job import PICTURES, RoundJob, length
from fewstep.orchestrator.training.validation import prepare

RECOVERIES = 3  # times that Ray restarts a round's workers after a failure


def train_rounds(recipe: Recipe, run: Run, data_of: Callable[[int], Mapping[DatasetKind, Dataset]]) -> None:
    """Train every round that is not finished yet, each on the data that `data_of` its number finds or makes.

    Needs a connected cluster.
    """
    rounds = recipe.method.build().rounds()
    check_sources(recipe)
    require(recipe.resources, [worker_bundle(recipe.resources)] * recipe.resources.first_workers, "resources.workers")
    for number, round in enumerate(rounds):
        folder = run.round_folder(number + 1, round)
        if (folder / RESULT).exists():
            say(f"round {number + 1} of {len(rounds)} ({round.name}) is already trained")
            continue
        by_kind = data_of(number)
        sources = {name: by_kind[dataset_kind] for name, dataset_kind in dataset_kinds(recipe, round).items()}
        say(f"round {number + 1} of {len(rounds)}: {round.name}")
        resolved = recipe.model_dump(mode="json")
        previous = run.round_folder(number, rounds[number - 1]) / RESULT if number else ""
        datasets = {name: (dataset.url, dataset.version) for name, dataset in sources.items()}
        is_validated = number == len(rounds) - 1 and recipe.training.evaluate_every
        validation_spec = prepare(recipe, run.folder / "evaluation") if is_validated else None
        job = RoundJob(resolved, number, str(folder), str(previous), datasets, validation_spec)
        with run.stage("train"), following(folder, round.name, length(round, recipe)):
            fit(recipe, job)


def fit(recipe: Recipe, job: RoundJob) -> None:
    """One round on Ray Train. Its own run name each time: what Ray keeps there is never resumed from."""
    name = uuid.uuid4().hex
    storage = Path(job.folder) / "ray"
    resources = recipe.resources
    trainer = TorchTrainer(
        train_worker,
        train_loop_config={"job": vars(job)},
        torch_config=TorchConfig(backend="nccl" if resources.gpus_per_worker else "gloo"),
        scaling_config=ScalingConfig(
            num_workers=(resources.min_workers, resources.workers) if resources.min_workers else resources.workers,
            use_gpu=resources.gpus_per_worker > 0,
            resources_per_worker=worker_bundle(resources),
        ),
        run_config=RunConfig(
            name=name, storage_path=str(storage), failure_config=FailureConfig(max_failures=RECOVERIES)
        ),
    )
    try:
        why = trainer.fit().return_value
    except ray.train.TrainingFailedError as error:
        raise cause(error) from error
    finally:
        shutil.rmtree(storage, ignore_errors=True)
    if why:
        raise why


def cause(error: BaseException) -> BaseException:
    """The user's mistake behind a failed worker group, where there is one."""
    failures = getattr(error, "worker_failures", {})
    for inner in [*failures.values(), error.__cause__]:
        if isinstance(inner, BadInput):
            return inner
        if inner is not None and (deeper := cause(inner)) is not inner:
            return deeper
    return error


def train_worker(config: Mapping[str, dict[str, object]]) -> Diverged | Abandoned | None:
    """One rank of one round. Returns why training ended early, which Ray would take for a failure to recover from."""
    from fewstep.orchestrator.training.round_trainer import RoundTrainer

    job = RoundJob(**config["job"])  # pyright: ignore[reportArgumentType]
    recipe = parse(job.recipe)
    context = ray.train.get_context()
    device = get_device()
    torch.set_num_threads(recipe.resources.threads_per_worker)
    rank = Rank(context.get_world_rank(), context.get_world_size(), torch.device(device))
    try:
        RoundTrainer(recipe, job, rank, lambda: ray.train.get_preemption_info() is not None).train()
    except (Diverged, Abandoned) as error:
        return error
    return None


@contextmanager
def following(folder: Path, description: str, steps: int) -> Iterator[None]:
    """Show the progress that rank 0 writes to a round's folder, and say where the first pictures are."""
    file, pictures = folder / "metrics.jsonl", folder / PICTURES
    done = int(metrics.newest(file).get("train/step", 0))
    stop = threading.Event()
    with progress(description, steps, done) as bar:

        def follow() -> None:
            seen, is_shown = done, pictures.exists()
            while not stop.wait(1.0):
                if not is_shown and (is_shown := any(pictures.glob("*.png"))):
                    say(f"the student's first pictures: {pictures}")
                values = metrics.newest(file)
                if (step := int(values.get("train/step", 0))) > seen:
                    losses = [
                        f"{key.removeprefix('loss/')} {value:.4f}"
                        for key, value in values.items()
                        if key.startswith("loss/")
                    ]
                    bar.describe(f"{description} ({', '.join(losses)})")
                    bar.advance(step - seen)
                    seen = step

        thread = threading.Thread(target=follow, daemon=True, name="progress")
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join()
