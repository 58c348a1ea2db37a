"""Measures the teacher's side of a comparison: its reference, the null, its best at few steps, and the gap between."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fewstep.orchestrator.errors import BadInput
from fewstep.orchestrator.evaluation.distances import Features, KernelDistances, Resampling, combine, units_of
from fewstep.orchestrator.evaluation.evaluator_pool import EvaluatorPool, evaluation_prompts, open_pool
from fewstep.orchestrator.evaluation.feature_cache import Key
from fewstep.orchestrator.evaluation.results import nearest_steps
from fewstep.orchestrator.evaluation.system import VARIED, SampleFeatures, System
from fewstep.orchestrator.files import write_whole
from fewstep.orchestrator.observability.console import say
from fewstep.orchestrator.observability.image_grid import contact_sheet
from fewstep.orchestrator.recipe.evaluation import Evaluation
from fewstep.orchestrator.recipe.recipe import Recipe
from fewstep.orchestrator.recipe.section import Json

VARIETY_SAMPLES = 16  # of one prompt
GATE_STEPS = 4  # the teacher must be bad at this many steps and fewer
GATE_SPREADS = 5.0  # by this many times the spread of the null


@dataclass(frozen=True)
class Candidate:
    """A way to sample a system that was compared with others, on disk as it is here."""

    sampler: str
    guidance_scale: float
    kid: float


@dataclass(frozen=True)
class ChosenSystem:
    """The best of several candidates, on disk as it is here."""

    sampler: str
    guidance_scale: float
    tried: tuple[Candidate, ...]  # the best first


@dataclass(frozen=True)
class TeacherSystems:
    """What a student is compared with."""

    reference: System  # many steps; what good pictures are
    null: System  # the same on other noise: what no system can be told from
    best: tuple[System, ...]  # one per number of steps, at its best sampler and guidance


def many_steps(evaluation: Evaluation) -> tuple[System, System]:
    """The reference and the null."""
    arguments = ("teacher", evaluation.solvers[0], evaluation.reference_steps, evaluation.guidance_scale)
    return System(*arguments, noise="reference"), System(*arguments, noise="judged")


def teacher_systems(pool: EvaluatorPool, evaluation: Evaluation) -> TeacherSystems:
    """The systems of an evaluation, the best chosen where they have not been yet."""
    best = tuple(choose(pool, evaluation, _teachers(pool, evaluation, steps)) for steps in sorted(evaluation.steps))
    return TeacherSystems(*many_steps(evaluation), best)


def student_systems(pool: EvaluatorPool, evaluation: Evaluation, sampler: str, fixed: float | None) -> list[System]:
    """The student at each number of steps; where its guidance is not `fixed`, at its best, as the teacher is."""
    scales = student_scales(evaluation, fixed)
    return [
        choose(pool, evaluation, [System("student", sampler, steps, w, "selection") for w in scales])
        for steps in sorted(evaluation.steps)
    ]


def student_scales(evaluation: Evaluation, fixed: float | None) -> Sequence[float]:
    """The guidance scales that a student may be sampled with."""
    return [fixed] if fixed is not None else evaluation.student_guidance_scales or _scales(evaluation)


def own_steps(recipe: Recipe) -> int:
    """Of the numbers of steps to judge, the one that the student is made for."""
    return nearest_steps(recipe.evaluation.steps, recipe.method.build().student_steps)


def measure_judged(
    pool: EvaluatorPool, recipe: Recipe, systems: Sequence[System], description: str
) -> dict[System, SampleFeatures]:
    """Samples of systems: fewer at other numbers of steps than the student is made for, if the recipe says so."""
    evaluation, measured = recipe.evaluation, dict[System, SampleFeatures]()
    in_full = {own_steps(recipe), evaluation.reference_steps}
    for is_full, count in ((True, evaluation.samples), (False, evaluation.other_samples or evaluation.samples)):
        some = [system for system in systems if (system.steps in in_full) is is_full]
        measured |= zip(some, pool.measure(some, count, description), strict=True)
    return measured


def measure_variety(pool: EvaluatorPool, systems: Sequence[System]) -> dict[System, SampleFeatures]:
    """Samples of a few prompts, several of each, by systems."""
    varied = [replace(system, noise="variety") for system in systems]
    return dict(zip(systems, pool.measure(varied, VARIED, "sampling a few prompts several times"), strict=True))


def choose(pool: EvaluatorPool, evaluation: Evaluation, candidates: Sequence[System]) -> System:
    """The best of candidates with one number of steps, by noise that is used for nothing else."""
    name, steps = candidates[0].name, candidates[0].steps
    if len(candidates) == 1:
        return replace(candidates[0], noise="judged")
    reference, key = selection_reference(evaluation), _choice_key(pool, evaluation, candidates)
    choice = pool.files.recall(key, ChosenSystem)
    if choice is None:
        count = evaluation.selection_samples
        samples = pool.measure([reference, *candidates], count, f"choosing the {name}'s best at {steps} steps")
        distances = kids([one.features for one in samples], units_of(count, len(pool.setting.prompts)))
        order = np.argsort(distances, kind="stable")
        tried = tuple(Candidate(candidates[i].sampler, candidates[i].guidance_scale, distances[i]) for i in order)
        choice = ChosenSystem(tried[0].sampler, tried[0].guidance_scale, tried)
        pool.files.decide(key, asdict(choice))
    return System(name, choice.sampler, steps, choice.guidance_scale)


def selection_reference(evaluation: Evaluation) -> System:
    """What a choice is made by."""
    reference, _ = many_steps(evaluation)
    return replace(reference, noise="selection reference")


def _scales(evaluation: Evaluation) -> list[float]:
    return sorted({*evaluation.guidance_scales, evaluation.guidance_scale})


def _teachers(pool: EvaluatorPool, evaluation: Evaluation, steps: int) -> list[System]:
    """The ways to sample the teacher in so many steps."""
    able, scales = pool.supported(evaluation.solvers, steps), _scales(evaluation)
    return [System("teacher", solver, steps, w, "selection") for solver in able for w in scales]


def _choice_key(pool: EvaluatorPool, evaluation: Evaluation, candidates: Sequence[System]) -> Key:
    stems = [pool.key(system).stem for system in (selection_reference(evaluation), *candidates)]
    whose = "" if candidates[0].name == "teacher" else "student-"
    facts = {"samples": evaluation.selection_samples, "systems": stems}
    return Key(f"best-{whose}{candidates[0].steps}-steps", facts)


def kids(features: Sequence[NDArray[np.floating]], units: NDArray[np.int64]) -> list[float]:
    """KID of each system's features [n, d] but the first's, to those of the first."""
    sets = {str(number): Features(values, units) for number, values in enumerate(features)}
    distances = KernelDistances(sets, Resampling(len(units), 0, 0, seed=0))
    return [distances.between(str(number), "0").value for number in range(1, len(features))]


def measure_teacher(recipe: Recipe, work: Path, out: Path) -> tuple[TeacherSystems, list[SampleFeatures]]:
    """Measure a teacher alone and write to `out` what an evaluation can start from: the features of its references,
    null and best few-step samples, and of the real images. `work` keeps what is not shipped.

    Returns the systems, and what was measured of the reference, the null and the best.
    """
    evaluation = recipe.evaluation
    with open_pool(recipe, evaluation_prompts(evaluation), work) as pool:
        systems = teacher_systems(pool, evaluation)
        judged = [systems.reference, systems.null, *systems.best]
        measured = measure_judged(pool, recipe, judged, "measuring the teacher")
        measure_variety(pool, judged[1:])
        chosen_by = selection_reference(evaluation)
        pool.measure([chosen_by], evaluation.selection_samples, "sampling what choices are made by")
        varied = [replace(system, noise="variety") for system in judged[1:]]
        for system in (*judged, *varied, chosen_by):
            pool.files.ship(pool.key(system), out)
        for steps in evaluation.steps:
            pool.files.ship(_choice_key(pool, evaluation, _teachers(pool, evaluation, steps)), out)
        if evaluation.images:
            pool.measure_images(evaluation.images)
            pool.files.ship(pool.images_key(evaluation.images), out)
    return systems, [measured[system] for system in judged]


def present_teacher(recipe: Recipe, work: Path, out: Path, variety_prompt: str) -> Json:
    """Measure a teacher, show it and say whether it is worth distilling.

    Writes to `out` what `measure_teacher` does, a contact sheet, 16 samples of `variety_prompt`, and gate.json, which
    is returned.
    """
    systems, samples = measure_teacher(recipe, work, out)
    contact_sheet(samples[0].pictures, 6, out / "contact-sheet.png")
    with open_pool(recipe, [variety_prompt], work) as pool:
        (same,) = pool.measure([systems.null], VARIETY_SAMPLES, "sampling one prompt")
    contact_sheet(same.pictures[:VARIETY_SAMPLES], 8, out / "variety.png")
    variety = {"prompt": variety_prompt, "ratio": _variety(same, samples[0])}
    gate = {**teacher_gate(recipe, systems, samples), "variety": variety}
    write_whole(out / "gate.json", json.dumps(gate, indent=1) + "\n")
    return gate


def teacher_gate(recipe: Recipe, systems: TeacherSystems, samples: Sequence[SampleFeatures]) -> Json:
    """Is the teacher at few steps so much worse than at many that there is something to distill?

    The spread of the null is half of its 95 % interval.
    """
    evaluation = recipe.evaluation
    units = units_of(evaluation.samples, len(evaluation_prompts(evaluation)))
    names = ["reference", "null", *(str(system.steps) for system in systems.best)]
    sets = {name: Features(one.features, units[: len(one.features)]) for name, one in zip(names, samples, strict=True)}
    resampling = Resampling(int(units.max()) + 1, 0, evaluation.bootstraps, evaluation.seed)
    distances = KernelDistances(sets, resampling)
    null = distances.between("null", "reference")
    spread = (null.high - null.low) / 2
    rows = []
    for system in systems.best:
        gap = combine((1, distances.between(str(system.steps), "reference")), (-1, null))
        row = {"steps": system.steps, "sampler": system.sampler, "guidance_scale": system.guidance_scale}
        rows.append(row | {"kid": gap.value + null.value, "worse_by_spreads": gap.value / spread})
    few = [row for row in rows if row["steps"] <= GATE_STEPS]
    if not few:
        raise BadInput(f"evaluation.steps: the gate needs a number of steps up to {GATE_STEPS}")
    passes = all(row["worse_by_spreads"] >= GATE_SPREADS for row in few)
    for row in rows:
        how = f"{row['sampler']} at guidance {row['guidance_scale']:g}"
        say(
            f"teacher at {row['steps']} steps ({how}): KID {row['kid']:.4f}, {row['worse_by_spreads']:.1f} null spreads"
        )
    say(f"gate {'passed' if passes else 'NOT passed'}: null KID {null.value:.5f}, spread {spread:.5f}")
    return {
        "passes": passes,
        "needed_spreads": GATE_SPREADS,
        "null": {"value": null.value, "low": null.low, "high": null.high, "spread": spread},
        "teacher": rows,
        "samples": len(units),
    }


def _variety(same: SampleFeatures, others: SampleFeatures) -> float:
    """Mean distance between samples of one prompt, over that between samples of many."""
    within, across = (_mean_distance(one.features[:VARIETY_SAMPLES].astype(np.float64)) for one in (same, others))
    return within / across


def _mean_distance(values: np.ndarray) -> float:
    distances = np.linalg.norm(values[:, None] - values[None], axis=-1)
    return float(distances[np.triu_indices(len(values), 1)].mean())
