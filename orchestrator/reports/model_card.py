"""Writes the model card of an exported student: how to use it, how good it is, where it comes from."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import yaml

from fewstep.orchestrator.evaluation.results import FRECHET, EvaluationResults
from fewstep.orchestrator.families.usage import Usage
from fewstep.orchestrator.files import write_whole
from fewstep.orchestrator.recipe.recipe import Recipe
from fewstep.orchestrator.recipe.teacher import teacher_name
from fewstep.orchestrator.reports.licence import Terms
from fewstep.orchestrator.students.inference import fixed_guidance, inference_arguments
from fewstep.orchestrator.teachers.folders import holds_pipeline
from fewstep.orchestrator.teachers.schedulers import OURS

RECIPE = "recipe.yaml"  # resolved, in the exported folder
HERE = "."  # how a folder's own card names it


def snippet(facts: CardFacts, student: Path, path: str) -> str:
    """The few lines of Python that sample the student as it was judged, with no import of ours."""
    if not holds_pipeline(student):
        return lora_snippet(facts, student, path)
    options = facts.usage.loading(path)
    arguments = ", ".join(_arguments(facts))
    if _scheduler(student) in OURS:
        options["trust_remote_code"] = True
    keywords = "".join(f", {name}={value!r}" for name, value in options.items())
    return "\n".join(
        [
            "from diffusers import DiffusionPipeline",
            "",
            f"pipeline = DiffusionPipeline.from_pretrained({path!r}{keywords})",
            f"image = pipeline({arguments}).images[0]",
            facts.usage.save,
        ]
    )


def lora_snippet(facts: CardFacts, student: Path, path: str) -> str:
    """The lines of `snippet` for the adapters alone on the teacher's own pipeline."""
    teacher, scheduler = facts.recipe.teacher, _scheduler(student)
    pinned = f", revision={teacher.revision!r}" if teacher.revision else ""
    imports = [f"from diffusers import DiffusionPipeline, {scheduler}", ""]
    if scheduler in OURS:
        origin = f"{path!r}, '{OURS[scheduler]}.py', 'scheduler', {scheduler!r}, trust_remote_code=True"
        imports = [
            "from diffusers import DiffusionPipeline",
            "from diffusers.utils.dynamic_modules_utils import get_class_from_dynamic_module",
            "",
            f"{scheduler} = get_class_from_dynamic_module({origin})",
        ]
    arguments = ", ".join(_arguments(facts))
    return "\n".join(
        [
            *imports,
            f"pipeline = DiffusionPipeline.from_pretrained({teacher.origin!r}{pinned})",
            f"pipeline.load_lora_weights({path!r}, subfolder='lora')",
            f"pipeline.scheduler = {scheduler}.from_pretrained({path!r}, subfolder='scheduler')",
            f"image = pipeline({arguments}).images[0]",
            'image.save("picture.png")',
        ]
    )


def _scheduler(student: Path) -> str:
    """The name of its class."""
    return json.loads((student / "scheduler" / "scheduler_config.json").read_text())["_class_name"]


def _arguments(facts: CardFacts) -> list[str]:
    """What the student is called with, at the guidance scale at which it was best, if it was judged."""
    recipe, results, usage = facts.recipe, facts.results, facts.usage
    method = recipe.method.build()
    call, scale = inference_arguments(recipe), fixed_guidance(recipe) or recipe.evaluation.guidance_scale
    if results.rows:
        scale = results.find("student", results.judged_steps(method.student_steps), "KID").guidance_scale
    arguments = [usage.arguments(facts.prompt, method.student_steps)]
    if usage.is_conditional:
        arguments.append(f"guidance_scale={scale:g}")
    if recipe.teacher.sizes and usage.has_size:
        height, width = recipe.teacher.sizes[0]
        arguments += [f"height={height}", f"width={width}"]
    if call.eta:
        arguments.append(f"eta={call.eta:g}")
    if call.negative_prompt:
        arguments.append(f"negative_prompt={call.negative_prompt!r}")
    return arguments


@dataclass(frozen=True)
class CardFacts:
    """All that a card tells of a student."""

    recipe: Recipe
    usage: Usage  # of its pipeline
    results: EvaluationResults  # UNJUDGED before its evaluation
    prompt: str  # of the example
    terms: Terms  # of its teacher
    lineage: Mapping[str, str]  # what it comes from, like the teacher's revision and the manifest's hash


def write_card(facts: CardFacts, student: Path, evaluation: Path) -> None:
    """Write README.md and recipe.yaml into the exported folder, with the picture and the files of the licence."""
    if facts.results.rows:
        shutil.copyfile(evaluation / "grid.png", student / "grid.png")
    for file in facts.terms.files:
        shutil.copyfile(file, student / file.name)
    write_whole(student / RECIPE, yaml.safe_dump(facts.recipe.resolved(), sort_keys=False))
    write_whole(student / "README.md", card(facts, student, HERE))


def card(facts: CardFacts, student: Path, path: str) -> str:
    """The card of a folder that is found at a path, which may be a hub's id."""
    recipe, results, method = facts.recipe, facts.results, facts.recipe.method.build()
    steps = method.student_steps
    about = f"Distilled with {recipe.method.name} ([arXiv:{method.paper}](https://arxiv.org/abs/{method.paper})) by "
    where = "From inside this folder, or with its path in place of the dot:\n\n" if path == HERE else ""
    judged = ["![The same noise and prompts down each column](grid.png)"] if results.rows else []
    parts = [
        f"---\n{_front(facts)}---",
        f"# {Path(recipe.output).name}: {teacher_name(recipe.teacher)} in {steps} step{'s' if steps > 1 else ''}",
        about + "fewstep. " + (results.headline(steps) if results.rows else "It has not been judged yet."),
        *judged,
        f"## Use\n\n{where}```python\n{snippet(facts, student, path)}\n```",
        *_adapters(facts, student, path),
        *(["## Quality\n\n" + table(results)] if results.rows else []),
        "## Where it comes from\n\n" + "\n".join(f"- {name}: `{value}`" for name, value in facts.lineage.items()),
        f"## Licence\n\n{_conditions(facts, student)}",
        "## Recipe\n\n```yaml\n" + yaml.safe_dump(recipe.resolved(), sort_keys=False) + "```",
    ]
    return "\n\n".join(parts) + "\n"


def _adapters(facts: CardFacts, student: Path, path: str) -> list[str]:
    """How the adapters are used alone, where there is more."""
    if not (student / "lora").is_dir() or not holds_pipeline(student):
        return []
    if not facts.usage.loads_lora:
        return ["The adapters alone are in `lora/`; the teacher's pipeline loads none, its model or peft does."]
    code = lora_snippet(facts, student, path)
    return [f"The adapters alone, on the teacher or a model made from it:\n\n```python\n{code}\n```"]


def _front(facts: CardFacts) -> str:
    """The card's metadata, as model hubs read it."""
    base = {"base_model": facts.recipe.teacher.hub} if facts.recipe.teacher.hub else {}
    own = {"library_name": "diffusers", "tags": [facts.usage.task, "fewstep"]}
    return yaml.safe_dump({"license": "other", **own, **base, **facts.terms.front})


def _conditions(facts: CardFacts, student: Path) -> str:
    """Whose licence holds for the student, whether its teacher is gated, and whether it is checked for safety."""
    teacher, terms = facts.recipe.teacher, facts.terms
    where = f"https://huggingface.co/{teacher.hub}" if teacher.hub else "its authors"
    files = ", ".join(f"[{file.name}]({file.name})" for file in terms.files)
    licence = f"licence: {terms.licence}" if terms.front else f"licence; see {where}"
    says = [f"The student is made from the teacher's weights and is under the teacher's {licence}."]
    if files:
        says.append(f"Its text: {files}.")
    if terms.gate:
        says.append("The teacher is gated: who passes the student on has to ask the same of those who get it.")
    index = json.loads((student / "model_index.json").read_text()) if holds_pipeline(student) else {}
    if "safety_checker" in index:
        has = "It has the teacher's" if index["safety_checker"][0] else "Like its teacher it has no"
        says.append(f"{has} safety checker.")
    return " ".join(says)


def table(results: EvaluationResults) -> str:
    """KID of every system with its interval, in markdown."""
    words = {"teacher": f"teacher at {results.many_steps} steps", "images": "real images", "statistics": "statistics"}
    names = [f"{results.kid} to {words[reference]}" for reference in results.references]
    distances = [(name, ref) for name in FRECHET for ref in words if results.measured(name, ref)]
    names += [f"{name} to {words[ref]}" for name, ref in distances]
    lines = [
        "| system | steps | sampler | guidance | " + " | ".join(names) + " | seconds per image |",
        "|---|---|---|---|" + "---|" * len(names) + "---|",
    ]
    for row in results.rows:
        if row.metric != results.kid or row.reference != "teacher":
            continue
        kids = [results.find(row.system, row.steps, "KID", reference) for reference in results.references]
        values = [f"{kid.value:.4f} [{kid.low:.4f}, {kid.high:.4f}]" for kid in kids]
        values += [f"{results.find(row.system, row.steps, *distance).value:.2f}" for distance in distances]
        cells = [
            row.system,
            str(row.steps),
            row.sampler,
            f"{row.guidance_scale:g}",
            *values,
            f"{row.seconds_per_image:.3g}",
        ]
        lines.append("| " + " | ".join(cells) + " |")
    samples = results.rows[0].samples
    return "\n".join(lines) + f"\n\n95 % intervals by a bootstrap over prompts, {samples:,} samples. Lower is nearer."
