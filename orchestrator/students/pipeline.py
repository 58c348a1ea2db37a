"""Turns a trained network into an ordinary diffusers pipeline, with the scheduler that its method is sampled with."""

from __future__ import annotations

import copy
import shutil
import uuid
from pathlib import Path

from fewstep.orchestrator.families.family import Family
from fewstep.orchestrator.families.network import PipelineNetwork
from fewstep.orchestrator.recipe.recipe import Recipe
from fewstep.orchestrator.students.inference import fixed_guidance
from fewstep.orchestrator.students.round_result import StudentSpec, read_network
from fewstep.orchestrator.students.schedulers import check_scheduler
from fewstep.orchestrator.teachers.load import load_student
from fewstep.orchestrator.teachers.teacher import Teacher


def build(recipe: Recipe, result: Path) -> Family:
    """The teacher's pipeline with a finished round's student in its place."""
    teacher = Teacher(recipe.teacher)
    return student_pipeline(recipe, teacher, read_network(result, teacher), StudentSpec.read(result))


def student_pipeline(recipe: Recipe, teacher: Teacher, network: PipelineNetwork, facts: StudentSpec) -> Family:
    """A student in a pipeline that shares all else with the teacher's, under the scheduler that it is exported with."""
    pipeline = copy.copy(teacher.pipeline)
    scheduler = check_scheduler(recipe, teacher, facts)
    pipeline.register_modules(**{network.component: network.model, "scheduler": scheduler})
    return type(teacher.family)(pipeline, teacher.spec.sizes)


def write(recipe: Recipe, result: Path, out: Path) -> None:
    """Build, save, and sample from what was saved; a crash leaves what was there before."""
    family = build(recipe, result)
    fresh = out.with_name(f".{out.name}-{uuid.uuid4().hex[:8]}")
    if StudentSpec.read(result).lora.rank:
        save_adapters(family, fresh / "lora", merge=recipe.export.merged)
    if recipe.export.merged:
        family.pipeline.save_pretrained(fresh, safe_serialization=True)
    else:
        family.pipeline.scheduler.save_pretrained(fresh / "scheduler")
    loaded = load_student(recipe.teacher, fresh)
    guidance_scale = fixed_guidance(recipe) or recipe.evaluation.guidance_scale
    image = loaded.pipeline(**loaded.call_arguments([""], "", 1, guidance_scale), output_type="pt").images
    if not bool(image.isfinite().all()):
        raise ValueError(f"the student of {result} makes pictures that are not finite; it was not exported to {out}")
    if out.exists():
        old = out.with_name(f".{out.name}-{uuid.uuid4().hex[:8]}")
        out.rename(old)
        fresh.rename(out)
        shutil.rmtree(old)
    else:
        fresh.rename(out)


def save_adapters(family: Family, folder: Path, *, merge: bool) -> None:
    """Write the adapters where the teacher's pipeline can load them, and add them to the pipeline's own weights."""
    if not family.network.guidance_modules:  # of which stock pipelines know nothing
        family.save_lora(folder)
    if merge:
        family.network.merge_lora()
