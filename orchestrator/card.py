"""The model card of an exported student: how to use it, how good it is, where it comes from."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path

import yaml

from orchestrator.checkpoint import write_whole
from orchestrator.export import brings_scheduler, call_of
from orchestrator.family import Family
from orchestrator.findings import Findings
from orchestrator.recipe import Recipe, TeacherSpec


def snippet(recipe: Recipe, family: type[Family], findings: Findings, place: str, prompt: str) -> str:
    """The few lines of Python that sample the student as it was judged, with no import of ours."""
    call, steps = call_of(recipe), recipe.method.build().student_steps
    judged = findings.find("student", findings.judged_steps(steps), "KID")
    arguments = [f"guidance_scale={judged.guidance_scale:g}"]
    if call.eta:
        arguments.append(f"eta={call.eta:g}")
    if call.negative_prompt:
        arguments.append(f"negative_prompt={call.negative_prompt!r}")
    options, first = family.usage(place, prompt, steps)
    if brings_scheduler(recipe):
        options["trust_remote_code"] = True
    told = "".join(f", {name}={value!r}" for name, value in options.items())
    return "\n".join(
        [
            "from diffusers import DiffusionPipeline",
            "",
            f"pipeline = DiffusionPipeline.from_pretrained({place!r}{told})",
            f"image = pipeline({first}, {', '.join(arguments)}).images[0]",
            'image.save("picture.png")',
        ]
    )


def write_card(
    recipe: Recipe,
    family: type[Family],
    student: Path,
    findings: Findings,
    evaluation: Path,
    prompt: str,
    lineage: Mapping[str, str],
) -> None:
    """Write README.md and its picture into the exported folder.

    `lineage` names what the student comes from, like the teacher's revision and the manifest's hash.
    """
    shutil.copyfile(evaluation / "grid.png", student / "grid.png")
    method = recipe.method.build()
    licence = licence_of(recipe.teacher)
    front = yaml.safe_dump({"license": licence.lower(), "library_name": "diffusers", "tags": [family.task, "fewstep"]})
    steps = method.student_steps
    parts = [
        f"---\n{front}---",
        f"# {Path(recipe.output).name}: {teacher_name(recipe.teacher)} in {steps} step{'s' if steps > 1 else ''}",
        f"Distilled with {recipe.method.name} ([arXiv:{method.paper}](https://arxiv.org/abs/{method.paper})) by "
        "fewstep. " + findings.headline(steps),
        "![The same noise and prompts down each column](grid.png)",
        "## Use\n\nFrom inside this folder, or with its path in place of the dot:\n\n```python\n"
        + snippet(recipe, family, findings, ".", prompt)
        + "\n```",
        "## Quality\n\n" + table(findings),
        "## Where it comes from\n\n" + "\n".join(f"- {name}: `{value}`" for name, value in lineage.items()),
        f"## Licence\n\n{licence_sentence(recipe.teacher)}",
        "## Recipe\n\n```yaml\n" + yaml.safe_dump(recipe.resolved(), sort_keys=False) + "```",
    ]
    write_whole(student / "README.md", "\n\n".join(parts) + "\n")


def table(findings: Findings) -> str:
    """KID of every system with its interval, in markdown."""
    words = {"teacher": f"teacher at {findings.many_steps} steps", "images": "real images"}
    names = [f"{findings.kid} to {words[reference]}" for reference in findings.references]
    lines = [
        "| system | steps | sampler | guidance | " + " | ".join(names) + " | seconds per image |",
        "|---|---|---|---|" + "---|" * len(names) + "---|",
    ]
    for row in findings.rows:
        if row.metric != findings.kid or row.reference != "teacher":
            continue
        kids = [findings.find(row.system, row.steps, "KID", reference) for reference in findings.references]
        values = [f"{kid.value:.4f} [{kid.low:.4f}, {kid.high:.4f}]" for kid in kids]
        cells = [
            row.system,
            str(row.steps),
            row.sampler,
            f"{row.guidance_scale:g}",
            *values,
            f"{row.seconds_per_image:.3g}",
        ]
        lines.append("| " + " | ".join(cells) + " |")
    samples = findings.rows[0].samples
    return "\n".join(lines) + f"\n\n95 % intervals by a bootstrap over prompts, {samples:,} samples. Lower is nearer."


def teacher_name(teacher: TeacherSpec) -> str:
    """What to call the teacher."""
    return Path(teacher.folder).name if teacher.folder else teacher.hub


def licence_of(teacher: TeacherSpec) -> str:
    """The licence that the teacher's own card names; "other" where it names none that can be read here."""
    card = Path(teacher.folder) / "README.md"
    if teacher.hub or not card.exists():
        return "other"
    pieces = card.read_text().split("---\n")
    front = yaml.safe_load(pieces[1]) if len(pieces) > 2 and not pieces[0].strip() else {}
    return str(front.get("license", "other")) if isinstance(front, dict) else "other"


def licence_sentence(teacher: TeacherSpec) -> str:
    """Whose licence holds for the student."""
    licence = licence_of(teacher)
    if licence != "other":
        return f"The student is made from the teacher's weights and is under the teacher's licence: {licence}."
    place = f"https://huggingface.co/{teacher.hub}" if teacher.hub else "its authors"
    return f"The student is made from the teacher's weights and is under the teacher's licence; see {place}."
