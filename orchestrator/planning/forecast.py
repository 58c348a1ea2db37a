"""Forecasts a run from configurations alone, before any weights are loaded."""

from __future__ import annotations

import dataclasses

from huggingface_hub import snapshot_download

from fewstep.orchestrator.datasets.plan import make_plan
from fewstep.orchestrator.datasets.sources import samples_teacher, trajectories_of
from fewstep.orchestrator.inputs.prompts import read_prompts
from fewstep.orchestrator.planning.memory import MemoryEstimate, estimate
from fewstep.orchestrator.planning.preflight import preflight
from fewstep.orchestrator.recipe.recipe import Recipe
from fewstep.orchestrator.recipe.section import Json
from fewstep.orchestrator.teachers.skeleton import skeleton
from fewstep.orchestrator.teachers.teacher import Teacher


def forecast(recipe: Recipe) -> Json:
    """Whether the recipe fits its teacher, what is sampled for it and what a worker holds; needs no network.

    Raises BadInput as `preflight` does, and for a teacher whose configuration is not here.
    """
    teacher = Teacher(recipe.teacher, load=skeleton)
    preflight(recipe, teacher, is_offline=True)
    memory = memory_facts(estimate(recipe, teacher)) if recipe.has_training else {}
    return {**_sampled(recipe, teacher), **memory}


def memory_of(recipe: Recipe) -> MemoryEstimate:
    """What a training worker will hold, by the teacher's configuration; a hub's is downloaded."""
    spec = recipe.teacher
    if spec.hub:
        spec = spec.at(snapshot_download(spec.hub, revision=spec.revision or None, allow_patterns="*.json"))
    return estimate(recipe, Teacher(spec, load=skeleton))


def memory_facts(memory: MemoryEstimate) -> Json:
    """The estimate as `--dry-run` answers it: gigabytes for people, bytes by what they are for."""
    sizes = {f"{name}_bytes": value for name, value in dataclasses.asdict(memory).items()}
    return {"worker_memory_gb": round(memory.device / 1e9, 1), **sizes}


def _sampled(recipe: Recipe, teacher: Teacher) -> Json:
    rounds = recipe.method.build().rounds()
    if not samples_teacher(recipe, rounds):
        return {}
    trajectories = trajectories_of(recipe, rounds[0])
    prompts = read_prompts(trajectories.prompts, column=trajectories.prompt_column)
    batch_size = 1 if trajectories.batch_size == "auto" else trajectories.batch_size
    plan = make_plan(recipe.model_copy(update={"trajectories": trajectories}), teacher.card, prompts, batch_size)
    return {
        "rows": plan.samples,
        "bytes": plan.total_bytes,
        "shards": len(plan.shards()),
        "teacher_evaluations": plan.teacher_evaluations,
    }
