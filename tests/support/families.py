"""Distills tiny teachers of every kind in one process: from prompts to an exported folder, without Ray."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from fewstep.orchestrator.engines.rank import Rank
from fewstep.orchestrator.planning.preflight import preflight
from fewstep.orchestrator.recipe.parsing import parse
from fewstep.orchestrator.recipe.recipe import Recipe
from fewstep.orchestrator.runs.run import RESULT, Run
from fewstep.orchestrator.students.pipeline import write
from fewstep.orchestrator.teachers.teacher import Teacher
from fewstep.orchestrator.training.round_job import RoundJob
from fewstep.orchestrator.training.round_trainer import RoundTrainer
from tests.support import tiny
from tests.support.data_sets import fill, new_commit_log

PIXELS = 32


@dataclass(frozen=True)
class Kind:
    """A kind of teacher, and what a recipe has to say for it."""

    teacher: Callable[[Path], Path] | str  # which writes a folder, or a factory
    prompts: Sequence[str] = tiny.PROMPTS
    solver: str = "ddim"
    resolution: int | tuple[tuple[int, int], ...] = PIXELS
    is_guided: bool = True


CLASSES = ("0", "1", "2")
KINDS = {
    "sd": Kind(tiny.teacher),
    "xl": Kind(tiny.xl_teacher, resolution=((PIXELS, PIXELS), (48, PIXELS))),
    "sd3": Kind(tiny.sd3_teacher, solver="flow-match-euler"),
    "flux": Kind(tiny.flux_teacher, solver="flow-match-euler"),
    "alpha": Kind(tiny.alpha_teacher),
    "sigma": Kind(tiny.sigma_teacher),
    "dit": Kind(tiny.dit_teacher, CLASSES),
    "labelled": Kind(tiny.labelled_teacher, CLASSES, resolution=0),
    "unconditional": Kind(tiny.unconditional_teacher, (), resolution=0, is_guided=False),
    "points": Kind("tests.support.own_models:points", ("left", "right"), resolution=0),
    "video": Kind("tests.support.own_models:video", solver="flow-match-euler", resolution=0),
}
METHODS: Mapping[str, Mapping[str, object]] = {
    "lcm-lora": {"name": "lcm-lora", "lora_rank": 2, "grid": 40},
    "dmd": {"name": "dmd"},
}
UNSEEN: Mapping[str, Mapping[str, object]] = {"lcm-lora": {}, "dmd": {"regression_weight": 0.0}}  # without pictures
UNGUIDED = {"lcm-lora": {"guidance_scale": (1.0, 1.0)}, "dmd": {"guidance_scale": 1.0}}


def recipe_of(family: str, method: str, folder: Path) -> Recipe:
    """A recipe of seconds."""
    data, kind = tiny.recipe_data(folder), KINDS[family]
    sections = {name: dict(section) for name, section in data.items() if isinstance(section, dict)}
    (folder / "prompts.txt").write_text("".join(f"{prompt}\n" for prompt in kind.prompts))
    prompts = str(folder / "prompts.txt") if kind.prompts else ""
    place = {"factory": kind.teacher} if isinstance(kind.teacher, str) else {"folder": str(kind.teacher(folder))}
    sections["teacher"] = {**place, "resolution": kind.resolution}
    sections["trajectories"] |= {"solver": kind.solver, "save": "ends", "prompts": prompts}
    sections["evaluation"] |= {"solvers": [kind.solver], "prompts": prompts}
    sections["training"] |= {"steps": 2, "log_every": 2}
    sections["method"] = {**METHODS[method]}
    if isinstance(kind.teacher, str):
        sections["method"] |= UNSEEN[method]
    if not kind.is_guided:
        sections["method"] |= UNGUIDED[method]
        sections["trajectories"] |= {"guidance_scale": 1.0}
        sections["evaluation"] |= {"guidance_scale": 1.0}
    return parse({**sections, "output": str(folder / f"{family}-{method}")})


def distill(family: str, method: str, folder: Path) -> None:
    """Train two steps and export."""
    recipe = recipe_of(family, method, folder)
    preflight(recipe, Teacher(recipe.teacher))
    commit_log = new_commit_log(recipe, folder / "store")
    fill(commit_log)
    run = Run(recipe)
    (round,) = recipe.method.build().rounds()
    place = run.round_folder(1, round)
    datasets = {name: (commit_log.url, 1) for name in round.sources}
    RoundTrainer(recipe, RoundJob(recipe.model_dump(mode="json"), 0, str(place), "", datasets), ONE).train()
    write(recipe, place / RESULT, run.folder / "student")


ONE = Rank(0, 1, torch.device("cpu"))

if __name__ == "__main__":
    torch.set_num_threads(1)
    out = Path(sys.argv[1])
    torch.distributed.init_process_group("gloo", init_method=f"file://{out}/rendezvous", rank=0, world_size=1)
    for each in KINDS:
        for way in METHODS:
            distill(each, way, out / each)
    torch.distributed.destroy_process_group()
