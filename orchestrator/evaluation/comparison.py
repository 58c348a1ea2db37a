"""Compares the student at few steps with the teacher at the same, by the teacher at many and by real images."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from fewstep.orchestrator.errors import BadInput
from fewstep.orchestrator.evaluation.baselines import TeacherSystems, student_systems, teacher_systems
from fewstep.orchestrator.evaluation.distances import (
    SAMPLES_FOR_FRECHET,
    BootstrapEstimate,
    FeatureMoments,
    Features,
    KernelDistances,
    Resampling,
    clip_score,
    combine,
    exactly,
    frechet_distance,
    precision_and_recall,
    same_noise_distance,
    units_of,
    units_of_images,
)
from fewstep.orchestrator.evaluation.evaluator_pool import evaluation_prompts, open_pool
from fewstep.orchestrator.evaluation.feature_networks import features_label
from fewstep.orchestrator.evaluation.reference_statistics import FIELD, check_evaluation, read_statistics
from fewstep.orchestrator.evaluation.results import (
    SAMPLES_FOR_A_CLAIM,
    Claim,
    EvaluationResults,
    Reference,
    Row,
    label,
)
from fewstep.orchestrator.evaluation.system import SampleFeatures, System
from fewstep.orchestrator.files import write_whole
from fewstep.orchestrator.inputs.images import open_images
from fewstep.orchestrator.observability.image_grid import grid
from fewstep.orchestrator.recipe.evaluation import Evaluation
from fewstep.orchestrator.recipe.recipe import Recipe
from fewstep.orchestrator.students.inference import fixed_guidance, inference_arguments

COLUMNS = 12  # of the picture


def evaluate(recipe: Recipe, student: Path, out: Path) -> EvaluationResults:
    """Compare an exported student with its teacher.

    Writes metrics.json, claims.json, grid.png and pictures.npz to `out`. Whatever was measured before is taken
    from there, so that the same call continues.
    """
    evaluation = recipe.evaluation
    check_evaluation(evaluation)
    stored = read_statistics(evaluation) if evaluation.statistics else None
    moments = stored if isinstance(stored, FeatureMoments) else None
    prompts = evaluation_prompts(evaluation)
    with open_pool(recipe, prompts, out, str(student), inference_arguments(recipe)) as pool:
        if moments:
            _check_width(moments, pool.num_features(), evaluation)
        teachers = teacher_systems(pool, evaluation)
        sampler = json.loads((student / "scheduler" / "scheduler_config.json").read_text())["_class_name"]
        students = student_systems(pool, evaluation, sampler, fixed_guidance(recipe))
        judged = [teachers.null, *teachers.best, *students]
        systems = [teachers.reference, *judged]
        measured = pool.measure(systems, evaluation.samples, "sampling what is judged")
        images = pool.measure_images(evaluation.images) if evaluation.images else None
        images = stored if isinstance(stored, SampleFeatures) else images
        texts = pool.measure_texts()
        seconds = pool.seconds_per_image(judged)
    samples = dict(zip(systems, measured, strict=True))
    comparison = Comparison(evaluation, prompts, teachers, samples, images, texts, moments)
    results = EvaluationResults(tuple(comparison.rows(judged, seconds)), tuple(comparison.claims(students)))
    write_whole(out / "metrics.json", json.dumps([asdict(row) for row in results.rows], indent=1) + "\n")
    write_whole(out / "claims.json", json.dumps([asdict(claim) for claim in results.claims], indent=1) + "\n")
    picture(samples, teachers, students, prompts, out)
    return results


class Comparison:
    """Numbers with intervals from measured systems; one resampling of prompts serves them all."""

    def __init__(
        self,
        evaluation: Evaluation,
        prompts: Sequence[str],
        teachers: TeacherSystems,
        samples: Mapping[System, SampleFeatures],
        images: SampleFeatures | None,
        texts: NDArray[np.float32] | None,
        moments: FeatureMoments | None = None,
    ) -> None:
        self._evaluation, self._teachers, self._moments = evaluation, teachers, moments
        self._texts = None if texts is None else texts[np.arange(evaluation.samples) % len(prompts)]
        units = units_of(evaluation.samples, len(prompts))
        num_units = int(units.max()) + 1
        self._sets = {_name(system): Features(one.features, units) for system, one in samples.items()}
        self._references: dict[Reference, str] = {"teacher": _name(teachers.reference)}
        others = 0
        if images is not None:
            unit = units_of_images(_captions(evaluation), prompts, num_units, len(images.features))
            self._sets["images"], self._references["images"] = Features(images.features, unit), "images"
            others = max(0, int(unit.max()) + 1 - num_units)
        self._resampling = Resampling(num_units, others, evaluation.bootstraps, evaluation.seed)
        self._kids = KernelDistances(self._sets, self._resampling)

    def kid(self, system: System, reference: Reference) -> BootstrapEstimate:
        """KID to a reference."""
        return self._kids.between(_name(system), self._references[reference])

    def rows(self, judged: Sequence[System], seconds: Mapping[System, float]) -> Iterator[Row]:
        """Every metric of every system."""
        label = features_label(self._evaluation.features)
        for system in judged:
            estimates = [(ref, *metric) for ref in self._references for metric in self._metrics(system, ref)]
            for reference, metric, estimate in [*estimates, *self._to_statistics(system)]:
                yield Row(
                    system=system.name,
                    sampler=system.sampler,
                    steps=system.steps,
                    guidance_scale=system.guidance_scale,
                    metric=f"{metric} ({label})",
                    features=self._evaluation.features,
                    reference=reference,
                    value=estimate.value,
                    low=estimate.low,
                    high=estimate.high,
                    samples=self._evaluation.samples,
                    seconds_per_image=round(seconds[system], 6),
                )

    def _to_statistics(self, system: System) -> Iterator[tuple[Reference, str, BootstrapEstimate]]:
        """The Frechet distance to what somebody stored of real images, where they stored moments."""
        if self._moments:
            distance = frechet_distance(FeatureMoments.of(self._sets[_name(system)].values), self._moments)
            yield "statistics", self._frechet, exactly(distance)

    @property
    def _frechet(self) -> str:
        """By Inception's features it is FID."""
        return "FID" if self._evaluation.features.startswith("inception:") else "Frechet distance"

    def _metrics(self, system: System, reference: Reference) -> Iterator[tuple[str, BootstrapEstimate]]:
        one, other = self._sets[_name(system)], self._sets[self._references[reference]]
        yield "KID", self.kid(system, reference)
        precision, recall = precision_and_recall(one, other, self._resampling)
        yield "precision", precision
        yield "recall", recall
        if reference == "teacher" and self._texts is not None:
            yield "CLIP score", clip_score(one, self._texts, self._resampling)
        if min(len(one), len(other)) >= SAMPLES_FOR_FRECHET:
            distance = frechet_distance(FeatureMoments.of(one.values), FeatureMoments.of(other.values))
            yield self._frechet, exactly(distance)
        if reference == "teacher" and system != self._teachers.null:
            same = self._sets[_name(self._teachers.null)]
            yield "same-noise distance", same_noise_distance(one, same, self._resampling)

    def claims(self, students: Sequence[System]) -> Iterator[Claim]:
        """The student against the best teacher at the same steps, and against the teacher at many."""
        for student, teacher in zip(students, self._teachers.best, strict=True):
            steps = student.steps
            for reference in self._references:
                mine, its = self.kid(student, reference), self.kid(teacher, reference)
                text = f"The student at {steps} steps beats the teacher's best at {steps}, by {_called(reference)}"
                yield self._claim(text, "beats", steps, reference, combine((1, mine), (-1, its)), 0.0)
            mine, its = self.kid(student, "teacher"), self.kid(teacher, "teacher")
            text = f"The student's KID at {steps} steps is less than half of the teacher's best at {steps}"
            yield self._claim(text, "half", steps, "teacher", combine((1, mine), (-0.5, its)), 0.0)
            yield from self._level(student)

    def _level(self, student: System) -> Iterator[Claim]:
        """Level is within a tenth of the gap between the teacher at 4 steps and at many."""
        many = self.kid(self._teachers.null, "teacher")
        for four in self._teachers.best:
            if four.steps == 4:
                limit = 0.1 * combine((1, self.kid(four, "teacher")), (-1, many)).value
                at = f"at {student.steps} steps"
                text = f"The student {at} is level with the teacher at {self._evaluation.reference_steps}"
                difference = combine((1, self.kid(student, "teacher")), (-1, many))
                yield self._claim(text, "level", student.steps, "teacher", difference, limit)

    def _claim(
        self,
        text: str,
        kind: Literal["beats", "half", "level"],
        steps: int,
        reference: Reference,
        difference: BootstrapEstimate,
        limit: float,
    ) -> Claim:
        samples = self._evaluation.samples
        return Claim(
            claim=text.replace(" 1 steps", " 1 step"),
            kind=kind,
            steps=steps,
            reference=reference,
            value=difference.value,
            low=difference.low,
            high=difference.high,
            holds=difference.high < limit,
            samples=samples,
            is_claim=samples >= SAMPLES_FOR_A_CLAIM,
        )


def picture(
    samples: Mapping[System, SampleFeatures],
    teachers: TeacherSystems,
    students: Sequence[System],
    prompts: Sequence[str],
    out: Path,
) -> None:
    """The teacher at many steps, then teacher and student in turn, all from the same noise.

    As grid.png, and as arrays for other grids: pictures.npz, by label, with the captions.
    """
    rows = [(label("teacher", teachers.null.steps), samples[teachers.null].pictures)]
    for pair in zip(teachers.best, students, strict=True):
        rows += [(label(system.name, system.steps), samples[system].pictures) for system in pair]
    columns = min(COLUMNS, len(rows[0][1]))
    captions = [prompts[column % len(prompts)] for column in range(columns)]
    grid(rows, captions, out / "grid.png")
    fresh = out / ".pictures.npz"
    arrays = {name: pictures[:columns] for name, pictures in rows}
    np.savez_compressed(fresh, allow_pickle=False, captions=np.array(captions), **arrays)
    fresh.replace(out / "pictures.npz")


def _check_width(moments: FeatureMoments, width: int, evaluation: Evaluation) -> None:
    if len(moments.mean) != width:
        raise BadInput(
            f"{FIELD}: {evaluation.statistics} is of {len(moments.mean)} features, "
            f"and {evaluation.features} has {width}; "
            "set evaluation.features to the network that it was made with"
        )


def _captions(evaluation: Evaluation) -> list[str]:
    """What the real images show, where they are at hand and have captions; else nothing."""
    if not evaluation.images:
        return []
    real = open_images(evaluation.images, "evaluation.images")
    return real.captions("prompt") if real.has("prompt") else []


def _name(system: System) -> str:
    return f"{system.name} {system.sampler} {system.steps} {system.guidance_scale:g} {system.noise}"


def _called(reference: Reference) -> str:
    return {"teacher": "the teacher at many steps", "images": "real images", "statistics": "stored statistics"}[
        reference
    ]
