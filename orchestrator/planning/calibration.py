"""Times the teacher on the cluster before anything is spent: what a batch takes, and which size of it is best."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Sequence

from fewstep.orchestrator.compute.tasks import device_of, run_task
from fewstep.orchestrator.datasets.plan import Plan, make_plan
from fewstep.orchestrator.observability.console import say
from fewstep.orchestrator.recipe.recipe import Recipe
from fewstep.orchestrator.sampling.solvers import SOLVERS
from fewstep.orchestrator.storage.urls import open_store
from fewstep.orchestrator.teachers.card import TeacherCard

GAIN = 1.05  # what twice the batch has to bring
TIMED_EVALUATIONS = 2


def settled_batch_size(recipe: Recipe, card: TeacherCard, prompts: Sequence[str], store: str) -> int:
    """The recipe's batch size; for "auto" the one that was found for this store before, or is found now."""
    if recipe.trajectories.batch_size != "auto":
        return recipe.trajectories.batch_size
    key = _calibration_key(recipe, card, prompts)
    try:
        return json.loads(open_store(store).read(key))["batch_size"]
    except FileNotFoundError:
        batch_size = run_task(_best_batch_size, recipe.resources, recipe, make_plan(recipe, card, prompts, 1))
        say(f"trajectories.batch_size: {batch_size}, found by trying")
        return batch_size


def recorded_batch_size(recipe: Recipe, card: TeacherCard, prompts: Sequence[str], store: str) -> int:
    """What `settled_batch_size` gives, noted in the store, so that the same command continues the same data set."""
    batch_size = settled_batch_size(recipe, card, prompts, store)
    if recipe.trajectories.batch_size == "auto":
        opened, key = open_store(store), _calibration_key(recipe, card, prompts)
        opened.put_if_absent(key, json.dumps({"batch_size": batch_size}).encode())
        return json.loads(opened.read(key))["batch_size"]
    return batch_size


def seconds_per_batch(recipe: Recipe, plan: Plan) -> float:
    """What one batch of the plan takes on one of the recipe's workers."""
    return run_task(_time_batch, recipe.resources, recipe, plan)


def _calibration_key(recipe: Recipe, card: TeacherCard, prompts: Sequence[str]) -> str:
    return f"calibrations/{make_plan(recipe, card, prompts, 1).hash}.json"


def _best_batch_size(recipe: Recipe, plan: Plan) -> int:
    """The largest power of two within a shard that still brings more samples a second, and fits."""
    import torch

    clock = _EvaluationTimer(recipe, plan)
    best, best_rate, size = 1, 0.0, 1
    while plan.shard_size % size == 0:
        try:
            rate = size / clock.seconds_per_evaluation(size)
        except torch.OutOfMemoryError:
            break
        if rate < GAIN * best_rate:
            break
        best, best_rate, size = size, rate, 2 * size
    return best


def _time_batch(recipe: Recipe, plan: Plan) -> float:
    evaluations = SOLVERS[plan.solver].evaluations(plan.num_inference_steps)
    return _EvaluationTimer(recipe, plan).seconds_per_evaluation(plan.batch_size) * evaluations


class _EvaluationTimer:
    """Times the teacher on this worker."""

    def __init__(self, recipe: Recipe, plan: Plan) -> None:
        from fewstep.orchestrator.compute.reproducibility import set_up
        from fewstep.orchestrator.teachers.teacher import Teacher

        device = device_of(recipe.resources)
        set_up(device, recipe.resources.threads_per_worker)
        self._teacher, self._plan = Teacher(recipe.teacher, device), plan
        self._largest = max(plan.latent_shapes, key=math.prod)
        self._uncond = self._teacher.encode([plan.negative_prompt])

    def seconds_per_evaluation(self, batch_size: int) -> float:
        """Time one evaluation of a batch, guidance included, after one that warms up."""
        import torch

        from fewstep.orchestrator.sampling.guidance import GuidedDenoiser

        noise = torch.zeros(batch_size, *self._largest, device=self._teacher.device)
        cond = {name: value.expand(batch_size, *value.shape[1:]) for name, value in self._uncond.items()}
        scale = torch.full((batch_size,), self._plan.sample_guidance(0), device=noise.device)
        guided = GuidedDenoiser(self._teacher.denoiser(), cond, self._uncond, scale)
        last = guided.schedule.at(torch.ones(batch_size)).to(noise.device)

        @torch.inference_mode()
        def evaluate(times: int) -> float:
            started = time.perf_counter()
            for _ in range(times):
                guided(noise, last).x0.cpu()  # which waits for the device
            return time.perf_counter() - started

        evaluate(1)
        return evaluate(TIMED_EVALUATIONS) / TIMED_EVALUATIONS
