"""What an exported folder says of itself, and what it passes on of its teacher's terms."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from fewstep.orchestrator.evaluation.results import UNJUDGED, EvaluationResults
from fewstep.orchestrator.families.usage import USAGES
from fewstep.orchestrator.recipe.parsing import parse
from fewstep.orchestrator.recipe.recipe import Recipe
from fewstep.orchestrator.recipe.teacher import TeacherSpec
from fewstep.orchestrator.reports.licence import Terms, terms_of
from fewstep.orchestrator.reports.model_card import CardFacts, card, write_card
from fewstep.orchestrator.students.pipeline import write
from tests.support import tiny
from tests.support.results import facts as report_facts
from tests.support.results import results
from tests.support.strangers import run_elsewhere
from tests.support.students import untrained, untrained_lora

LICENCE = "---\nlicense: other\nlicense_name: tiny-community\nlicense_link: LICENSE.md\ntags: [x]\n"
GATE = "extra_gated_prompt: Promise to be kind.\nextra_gated_fields:\n  Name: text\n"

TEXT = USAGES["StableDiffusionPipeline"]


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Recipe:
    """Its teacher has a safety checker, a licence of its own and a gate."""
    data = tiny.recipe_data(tmp_path_factory.mktemp("tiny"))
    recipe = parse(data)
    folder = Path(recipe.teacher.folder)
    tiny.add_safety_checker(folder)
    (folder / "README.md").write_text(f"{LICENCE}{GATE}---\n# Tiny\n")
    (folder / "LICENSE.md").write_text("Do no harm.\n")
    return recipe


@pytest.fixture(scope="module")
def student(recipe: Recipe, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("export")
    write(recipe, untrained(recipe, folder), folder / "student")
    return folder / "student"


def told(recipe: Recipe, found: EvaluationResults = UNJUDGED) -> CardFacts:
    return CardFacts(
        recipe,
        TEXT,
        found,
        "a cat",
        terms_of(recipe.teacher),
        {"teacher revision": "ab" * 32},
    )


def front(text: str) -> dict[str, object]:
    return yaml.safe_load(text.split("---\n")[1])


def run_last_snippet(text: str, folder: Path) -> None:
    """In a fresh process in the folder."""
    *_, code = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    subprocess.run([sys.executable, "-I", "-c", code], check=True, cwd=folder)
    assert (folder / "picture.png").exists()


def test_the_cards_snippet_runs_in_a_fresh_process(recipe: Recipe, student: Path, tmp_path: Path) -> None:
    report_facts(tmp_path, results())
    write_card(told(recipe, results()), student, tmp_path)
    text = (student / "README.md").read_text()
    assert "num_inference_steps=4, guidance_scale=3)" in text
    run_last_snippet(text, student)
    assert "| student | 4 | LCMScheduler | 3 | 0.0120 [0.0114, 0.0126] |" in text
    assert (student / "grid.png").exists()


def test_a_student_that_nobody_judged_has_a_card_too(recipe: Recipe, student: Path) -> None:
    text = card(told(recipe), student, ".")
    assert "It has not been judged yet." in text and "## Quality" not in text and "grid.png" not in text
    assert "guidance_scale=3" in text  # the recipe's
    (shown,) = re.findall(r"```yaml\n(.*?)```", text, re.DOTALL)
    assert parse(yaml.safe_load(shown)).resolved() == recipe.resolved()


def test_a_card_on_a_hub_names_the_place_that_it_is_at(recipe: Recipe, student: Path) -> None:
    assert "DiffusionPipeline.from_pretrained('me/student')" in card(told(recipe), student, "me/student")


def test_licence_gate_and_safety_checker_are_the_teachers(recipe: Recipe, student: Path, tmp_path: Path) -> None:
    write_card(told(recipe), student, tmp_path)
    text = (student / "README.md").read_text()
    assert front(text) == {
        "license": "other",
        "license_name": "tiny-community",
        "license_link": "LICENSE.md",
        "extra_gated_prompt": "Promise to be kind.",
        "extra_gated_fields": {"Name": "text"},
        "library_name": "diffusers",
        "tags": ["text-to-image", "fewstep"],
    }
    assert (student / "LICENSE.md").read_text() == "Do no harm.\n"
    assert "licence: tiny-community." in text and "[LICENSE.md](LICENSE.md)" in text
    assert "teacher is gated" in text and "It has the teacher's safety checker." in text
    assert json.loads((student / "model_index.json").read_text())["safety_checker"][1] == "StableDiffusionSafetyChecker"
    assert (student / "safety_checker" / "model.safetensors").exists()


def test_terms_of_a_folder_are_those_of_its_card(tmp_path: Path) -> None:
    teacher = TeacherSpec(folder=str(tmp_path))
    assert terms_of(teacher) == Terms() and Terms().licence == "other"
    (tmp_path / "README.md").write_text("---\nlicense: apache-2.0\nlanguage: en\n---\n# A teacher\n")
    assert terms_of(teacher) == Terms({"license": "apache-2.0"})
    (tmp_path / "README.md").write_text(f"{LICENCE}{GATE}---\n")
    (tmp_path / "NOTICE").write_text("")
    assert (terms_of(teacher).gate, terms_of(teacher).licence) == ("auto", "tiny-community")
    assert [file.name for file in terms_of(teacher).files] == ["NOTICE"]


@pytest.mark.parametrize("merged", [True, False])
def test_adapters_are_used_alone_on_the_teacher(recipe: Recipe, tmp_path: Path, merged: bool) -> None:
    method = {"name": "lcm-lora", "lora_rank": 2}
    lora = parse(recipe.model_dump(mode="json") | {"method": method, "export": {"merged": merged}})
    write(lora, untrained_lora(lora, tmp_path), tmp_path / "student")
    text = card(told(lora), tmp_path / "student", ".")
    assert "load_lora_weights('.', subfolder='lora')" in text and text.count("```python") == 1 + merged
    run_last_snippet(text, tmp_path / "student")
    if not merged:
        held = {str(file.relative_to(tmp_path / "student")) for file in (tmp_path / "student").rglob("*.*")}
        assert held == {"lora/pytorch_lora_weights.safetensors", "scheduler/scheduler_config.json", "picture.png"}
        return
    pixels = replace(told(lora), usage=USAGES["ClassConditionalPipeline"])
    assert "load_lora_weights" not in card(pixels, tmp_path / "student", ".")  # its pipeline has no such thing


def test_a_student_on_straight_paths_is_called_as_any_other(recipe: Recipe, tmp_path: Path) -> None:
    method = {"name": "lcm-lora", "lora_rank": 2, "grid": 48}
    teacher = {"folder": str(tiny.sd3_teacher(tmp_path)), "resolution": 32}
    sd3 = parse(recipe.model_dump(mode="json") | {"method": method, "teacher": teacher})
    write(sd3, untrained_lora(sd3, tmp_path), tmp_path / "student")
    text = card(replace(told(sd3), usage=USAGES["StableDiffusion3Pipeline"]), tmp_path / "student", ".")
    whole, adapters = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    for code in (whole, adapters):
        assert "num_inference_steps=4" in code and "trust_remote_code=True" in code and "sigmas" not in code
        shown = "assert pipeline.scheduler.timesteps.tolist() == [1000, 900, 750, 500]\n"
        run_elsewhere(code + shown, cwd=tmp_path / "student")
    assert [file.name for file in (tmp_path / "student" / "scheduler").glob("*.py")] == ["even_flow.py"]
