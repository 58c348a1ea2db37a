"""One rank of a pair that trains tiny students which are judged meanwhile: well, past their best, and into ruin.

python exams.py RANK WORLD_SIZE PORT FOLDER
"""

from __future__ import annotations

import pickle
from dataclasses import replace
from pathlib import Path

from fewstep.orchestrator.engines.rank import Rank
from fewstep.orchestrator.errors import Diverged
from fewstep.orchestrator.evaluation.baselines import selection_reference
from fewstep.orchestrator.evaluation.evaluator import Evaluator
from fewstep.orchestrator.evaluation.evaluator_pool import evaluation_prompts
from fewstep.orchestrator.evaluation.system import VARIED, EvaluationSetting, System
from fewstep.orchestrator.recipe.parsing import parse
from fewstep.orchestrator.recipe.recipe import Recipe
from fewstep.orchestrator.students.inference import inference_arguments
from fewstep.orchestrator.training.round_job import RoundJob
from fewstep.orchestrator.training.round_trainer import RoundTrainer
from fewstep.orchestrator.training.validation import ValidationSpec, steps_of
from tests.support import tiny
from tests.support.data_sets import fill, new_commit_log
from tests.support.pair import joined

JOBS = "jobs"
CASES: dict[str, dict[str, object]] = {
    "judged": {"steps": 5, "evaluate_every": 2, "zero_stage": 1},
    "past its best": {"steps": 12, "evaluate_every": 1, "patience": 3, "learning_rate": 0.01, "keep_checkpoints": 2},
    "ruined": {"steps": 50, "evaluate_every": 4, "learning_rate": 10.0},
}


def recipe_of(case: str, folder: Path) -> Recipe:
    """The tiny recipe, judged in two steps."""
    data = tiny.recipe_data(folder)
    sections = {name: dict(section) for name, section in data.items() if isinstance(section, dict)}
    sections["training"] |= CASES[case]
    sections["method"] |= {"sampling_ema_decay": 0.5}
    return parse({**sections, "resources": {"workers": 2}, "output": str(folder / case)})


def exam_of(recipe: Recipe) -> ValidationSpec:
    """As the driver prepares it, in this process."""
    told = recipe.evaluation
    prompts = tuple(evaluation_prompts(told))
    setting = EvaluationSetting(
        recipe.teacher, "", inference_arguments(recipe), "", prompts, told.features, told.check, told.seed, 4, "cpu", 1
    )
    many, evaluator = selection_reference(told), Evaluator(setting)
    reference = evaluator.measure(many, range(told.selection_samples))
    varied = evaluator.measure(replace(many, noise="variety"), range(VARIED))
    system = System("student", "", steps_of(recipe), told.guidance_scale, "selection")
    return ValidationSpec(setting, system, reference, varied)


def prepare(folder: Path) -> None:
    """Write down what both ranks are told."""
    jobs = {}
    for case in CASES:
        recipe = recipe_of(case, folder)
        (round,) = recipe.method.build().rounds()
        commit_log = new_commit_log(recipe, folder / "store")
        fill(commit_log)
        place, datasets = str(folder / case), dict.fromkeys(round.sources, (commit_log.url, 1))
        jobs[case] = RoundJob(recipe.model_dump(mode="json"), 0, place, "", datasets, exam_of(recipe))
    (folder / JOBS).write_bytes(pickle.dumps(jobs))


def train(job: RoundJob, place: Rank) -> str:
    """How training went wrong, where it did."""
    try:
        RoundTrainer(parse(job.recipe), job, place).train()
    except Diverged as error:
        return str(error)
    return ""


if __name__ == "__main__":
    with joined() as (place, folder):
        for case, job in pickle.loads((folder / JOBS).read_bytes()).items():
            why = train(job, place)
            (folder / case / f"{place.index}.txt").write_text(why)
