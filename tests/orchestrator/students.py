"""Students that nobody trained: the teacher's own weights in the shape that a method exports."""

from __future__ import annotations

import json
from pathlib import Path

from safetensors.torch import save_file

from orchestrator.recipe import Recipe
from orchestrator.results import RESULT
from orchestrator.teacher import Teacher


def untrained(recipe: Recipe, folder: Path, *, guidance_input: bool = True) -> Path:
    """A round's result folder as training writes it."""
    network = Teacher(recipe.teacher).network
    if guidance_input:
        network = network.with_guidance_input()
    result = folder / RESULT
    result.mkdir(parents=True)
    save_file(network.state_dict(), result / "result.safetensors")
    facts = {"guidance_input": guidance_input, "prediction": "", "schedule": "", "lora_rank": 0}
    (result / "student.json").write_text(json.dumps(facts))
    return result
