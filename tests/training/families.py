"""Distills tiny teachers of every kind in one process: from prompts to an exported folder, without Ray."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path

import torch

from orchestrator.export import write
from orchestrator.loop import Place
from orchestrator.preflight import preflight
from orchestrator.recipe import Recipe, parse
from orchestrator.results import RESULT
from orchestrator.run import Run
from orchestrator.teacher import Teacher
from orchestrator.trainee import Job, Trainee
from tests import tiny
from tests.conftest import fill, new_ledger

TEACHERS = {"sd": tiny.teacher, "xl": tiny.xl_teacher, "sd3": tiny.sd3_teacher, "flux": tiny.flux_teacher}
SOLVERS = {"sd": "ddim", "xl": "ddim", "sd3": "flow-match-euler", "flux": "flow-match-euler"}
PIXELS = 32
METHODS: Mapping[str, Mapping[str, object]] = {
    "lcm-lora": {"name": "lcm-lora", "lora_rank": 2},
    "dmd": {"name": "dmd"},
}


def recipe_of(family: str, method: str, folder: Path) -> Recipe:
    """A recipe of seconds."""
    data = tiny.recipe_data(folder)
    sections = {name: dict(section) for name, section in data.items() if isinstance(section, dict)}
    sections["teacher"] = {"folder": str(TEACHERS[family](folder)), "resolution": PIXELS}
    sections["trajectories"] |= {"solver": SOLVERS[family], "save": "ends"}
    sections["evaluation"] |= {"solvers": [SOLVERS[family]]}
    sections["training"] |= {"steps": 2, "log_every": 2}
    return parse({**sections, "method": METHODS[method], "output": str(folder / f"{family}-{method}")})


def distill(family: str, method: str, folder: Path) -> None:
    """Train two steps and export."""
    recipe = recipe_of(family, method, folder)
    preflight(recipe, Teacher(recipe.teacher))
    ledger = new_ledger(recipe, folder / "store")
    fill(ledger)
    run = Run(recipe)
    (round,) = recipe.method.build().rounds()
    place = run.round_folder(1, round)
    datasets = {name: (ledger.url, 1) for name in round.sources}
    Trainee(recipe, Job(recipe.model_dump(mode="json"), 0, str(place), "", datasets), ONE).train()
    write(recipe, place / RESULT, run.folder / "student")


ONE = Place(0, 1, torch.device("cpu"))

if __name__ == "__main__":
    torch.set_num_threads(1)
    out = Path(sys.argv[1])
    torch.distributed.init_process_group("gloo", init_method=f"file://{out}/rendezvous", rank=0, world_size=1)
    for each in TEACHERS:
        for way in METHODS:
            distill(each, way, out / each)
    torch.distributed.destroy_process_group()
