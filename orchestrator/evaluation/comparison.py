"""Compares the student at few steps with the teacher at the same, by the teacher at many and by real images."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from fewstep.orchestrator.errors import BadInput
from fewstep.orchestrator.evaluation.baselines import (
    TeacherSystems,
    measure_judged,
    measure_variety,
    own_steps,
    student_systems,
    teacher_systems,
)
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
    neighbour_distances,
    precision_and_recall,
    same_noise_distance,
    times_less,
    units_of,
    units_of_images,
    variety,
)
from fewstep.orchestrator.evaluation.evaluator_pool import EvaluatorPool, evaluation_prompts, open_pool
from fewstep.orchestrator.evaluation.reference_statistics import FIELD, check_evaluation, read_statistics
from fewstep.orchestrator.evaluation.results import (
    LOOKS,
    SAMPLES_FOR_A_CLAIM,
    Claim,
    EvaluationResults,
    Reference,
    Row,
    label,
)
from fewstep.orchestrator.evaluation.system import VARIED, VARIETY, SampleFeatures, System
from fewstep.orchestrator.files import write_whole
from fewstep.orchestrator.inputs.images import open_images
from fewstep.orchestrator.observability.image_grid import grid
from fewstep.orchestrator.recipe.evaluation import Evaluation
from fewstep.orchestrator.recipe.recipe import Recipe
from fewstep.orchestrator.students.inference import fixed_guidance, inference_arguments

COLUMNS = 12  # of the picture
Kind = Literal["beats", "half", "level"]
Difference = tuple[Kind, Reference, str, BootstrapEstimate, float]  # a claim's kind, reference, words, number and limit


def evaluate(recipe: Recipe, student: Path, out: Path) -> EvaluationResults:
    """Compare an exported student with its teacher.

    Writes metrics.json, claims.json, grid.png, pictures.npz and extremes.png to `out`. Whatever was measured before is
    taken from there, so that the same call continues.
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
        samples = measure_judged(pool, recipe, [teachers.reference, *judged], "sampling what is judged")
        varied = measure_variety(pool, judged)
        images = pool.measure_images(evaluation.images) if evaluation.images else None
        images = stored if isinstance(stored, SampleFeatures) else images
        texts = pool.measure_texts()
        seconds = pool.seconds_per_image(judged)
        labels = pool.labels()
        own = next(system for system in students if system.steps == own_steps(recipe))
        extremes(pool, [teachers.null, own], samples, samples[teachers.reference], out)
    measured = Measured(samples, varied, images, texts, moments, labels)
    comparison = Comparison(evaluation, prompts, teachers, measured)
    rows = tuple(comparison.rows(judged, seconds))
    objections = {system.steps: EvaluationResults(rows, ()).objections(system.steps) for system in students}
    results = EvaluationResults(rows, tuple(comparison.claims(students, objections)))
    write_whole(out / "metrics.json", json.dumps([asdict(row) for row in results.rows], indent=1) + "\n")
    write_whole(out / "claims.json", json.dumps([asdict(claim) for claim in results.claims], indent=1) + "\n")
    picture(samples, teachers, students, prompts, out)
    return results


@dataclass(frozen=True)
class Measured:
    """All that numbers come from."""

    samples: Mapping[System, SampleFeatures]
    varied: Mapping[System, SampleFeatures]  # of a few prompts, VARIETY of each
    images: SampleFeatures | None  # real ones
    texts: NDArray[np.float32] | None  # features of the prompts [prompts, d]
    moments: FeatureMoments | None  # of real images that somebody else measured
    labels: Mapping[str, str]  # what figures call the networks, by name


class Comparison:
    """Numbers with intervals from measured systems; one resampling of prompts serves them all."""

    def __init__(
        self,
        evaluation: Evaluation,
        prompts: Sequence[str],
        teachers: TeacherSystems,
        measured: Measured,
    ) -> None:
        self._evaluation, self._teachers, self._measured = evaluation, teachers, measured
        units = units_of(evaluation.samples, len(prompts))
        num_units = int(units.max()) + 1
        self._prompt = np.arange(evaluation.samples) % len(prompts)
        by_name = {_name(system): one for system, one in measured.samples.items()}
        reference = _name(teachers.reference)
        self._sets = _sets_of({name: one.features for name, one in by_name.items()}, reference, units)
        checks = _sets_of({name: one.check for name, one in by_name.items()}, reference, units)
        self._references: tuple[Reference, ...] = ("teacher", "images") if measured.images else ("teacher",)
        others = 0
        if images := measured.images:
            unit = units_of_images(_captions(evaluation), prompts, num_units, len(images.features))
            self._sets["images"] = Features(images.features, unit)
            others = max(0, int(unit.max()) + 1 - num_units)
        self._resampling = Resampling(num_units, others, evaluation.bootstraps, evaluation.seed)
        self._of_prompts = Resampling(VARIED // VARIETY, 0, evaluation.bootstraps, evaluation.seed)
        self._kids = KernelDistances(self._sets, self._resampling)
        self._check_kids = KernelDistances(checks, self._resampling) if evaluation.check else None

    def kid(self, system: System, reference: Reference) -> BootstrapEstimate:
        """KID to a reference."""
        return self._kids.between(_name(system), self._reference_of(system, reference))

    def _reference_of(self, system: System, reference: Reference) -> str:
        """The set that a system is compared with."""
        return _first(len(self._sets[_name(system)])) if reference == "teacher" else reference

    def rows(self, judged: Sequence[System], seconds: Mapping[System, float]) -> Iterator[Row]:
        """Every metric of every system."""
        network = self._evaluation.features
        label = self._measured.labels[network]
        for system in judged:
            estimates = [(ref, *metric) for ref in self._references for metric in self._metrics(system, ref)]
            by_features = [
                (reference, f"{metric} ({label})", network, estimate)
                for reference, metric, estimate in [*estimates, *self._to_statistics(system)]
            ]
            for reference, metric, features, estimate in [*by_features, *self._checked(system), *self._looks(system)]:
                yield Row(
                    system=system.name,
                    sampler=system.sampler,
                    steps=system.steps,
                    guidance_scale=system.guidance_scale,
                    metric=metric,
                    features=features,
                    reference=reference,
                    value=estimate.value,
                    low=estimate.low,
                    high=estimate.high,
                    samples=len(self._sets[_name(system)]),
                    seconds_per_image=round(seconds[system], 6),
                )

    def _to_statistics(self, system: System) -> Iterator[tuple[Reference, str, BootstrapEstimate]]:
        """The Frechet distance to what somebody stored of real images, where they stored moments."""
        if self._measured.moments:
            values = self._sets[_name(system)].values
            distance = frechet_distance(FeatureMoments.of(values), self._measured.moments)
            yield "statistics", self._frechet, exactly(distance)

    def _check_kid(self, system: System) -> BootstrapEstimate | None:
        """KID to the teacher by the second network, where there is one."""
        kids = self._check_kids
        return kids.between(_name(system), self._reference_of(system, "teacher")) if kids else None

    def _checked(self, system: System) -> Iterator[tuple[Reference, str, str, BootstrapEstimate]]:
        network = self._evaluation.check
        if kid := self._check_kid(system):
            yield "teacher", f"check KID ({self._measured.labels[network]})", network, kid

    def _looks(self, system: System) -> Iterator[tuple[Reference, str, str, BootstrapEstimate]]:
        """How the pictures look, by no network."""
        appearance, units = self._measured.samples[system].appearance, self._sets[_name(system)].units
        for number, name in enumerate(LOOKS):
            yield "teacher", name, "", self._resampling.mean(appearance[:, number].astype(np.float64), units)

    @property
    def _frechet(self) -> str:
        """By Inception's features it is FID."""
        return "FID" if self._evaluation.features.startswith("inception:") else "Frechet distance"

    def _metrics(self, system: System, reference: Reference) -> Iterator[tuple[str, BootstrapEstimate]]:
        one, other = self._sets[_name(system)], self._sets[self._reference_of(system, reference)]
        yield "KID", self.kid(system, reference)
        precision, recall = precision_and_recall(one, other, self._resampling)
        yield "precision", precision
        yield "recall", recall
        if reference == "teacher":
            its = self._measured.varied[self._teachers.null].features
            yield "variety", variety(self._measured.varied[system].features, its, VARIETY, self._of_prompts)
        if reference == "teacher" and self._measured.texts is not None:
            texts = self._measured.texts[self._prompt[: len(one)]]
            yield "CLIP score", clip_score(one, texts, self._resampling)
        if min(len(one), len(other)) >= SAMPLES_FOR_FRECHET:
            distance = frechet_distance(FeatureMoments.of(one.values), FeatureMoments.of(other.values))
            yield self._frechet, exactly(distance)
        if reference == "teacher" and system != self._teachers.null:
            same = self._sets[_name(self._teachers.null)]
            yield "same-noise distance", same_noise_distance(one, same, self._resampling)

    def claims(self, students: Sequence[System], objections: Mapping[int, Sequence[str]]) -> Iterator[Claim]:
        """The student against the best teacher at the same steps, and against the teacher at many.

        `objections`, by steps, are to the student's pictures; no claim holds against them.
        """
        for student, teacher in zip(students, self._teachers.best, strict=True):
            steps = student.steps
            samples = len(self._sets[_name(student)])
            withheld = "; ".join([*objections[steps], *self._dissent(student, teacher)])
            for kind, reference, text, difference, limit in self._differences(student, teacher):
                yield Claim(
                    claim=text.replace(" 1 steps", " 1 step"),
                    kind=kind,
                    steps=steps,
                    reference=reference,
                    value=difference.value,
                    low=difference.low,
                    high=difference.high,
                    holds=difference.high < limit and not withheld,
                    samples=samples,
                    is_claim=samples >= SAMPLES_FOR_A_CLAIM,
                    times=times_less(*self._pair(student, teacher, reference)) if kind == "beats" else 0.0,
                    withheld=withheld,
                )

    def _dissent(self, student: System, teacher: System) -> Iterator[str]:
        """That the second network does not find the student nearer."""
        mine, its = self._check_kid(student), self._check_kid(teacher)
        if mine and its and combine((1, mine), (-1, its)).high >= 0:
            label = self._measured.labels[self._evaluation.check]
            yield f"by {label} it is not shown to be nearer, KID {mine.value:.4f} against {its.value:.4f}"

    def _differences(self, student: System, teacher: System) -> Iterator[Difference]:
        steps, reference_steps = student.steps, self._evaluation.reference_steps
        for reference in self._references:
            mine, its = self._pair(student, teacher, reference)
            text = f"The student at {steps} steps beats the teacher's best at {steps}, by {_called(reference)}"
            yield "beats", reference, text, combine((1, mine), (-1, its)), 0.0
        mine, its = self._pair(student, teacher, "teacher")
        text = f"The student's KID at {steps} steps is less than half of the teacher's best at {steps}"
        yield "half", "teacher", text, combine((1, mine), (-0.5, its)), 0.0
        many = self.kid(self._teachers.null, "teacher")
        for four in self._teachers.best:
            if four.steps == 4:  # level is within a tenth of the gap between the teacher at 4 steps and at many
                limit = 0.1 * combine((1, self.kid(four, "teacher")), (-1, many)).value
                text = f"The student at {steps} steps is level with the teacher at {reference_steps}"
                yield "level", "teacher", text, combine((1, mine), (-1, many)), limit

    def _pair(
        self, student: System, teacher: System, reference: Reference
    ) -> tuple[BootstrapEstimate, BootstrapEstimate]:
        return self.kid(student, reference), self.kid(teacher, reference)


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
    rows = [(name, pictures[:columns]) for name, pictures in rows]
    grid(rows, captions, out / "grid.png")
    fresh = out / ".pictures.npz"
    np.savez_compressed(fresh, allow_pickle=False, captions=np.array(captions), **dict(rows))
    fresh.replace(out / "pictures.npz")


def extremes(
    pool: EvaluatorPool,
    systems: Sequence[System],
    samples: Mapping[System, SampleFeatures],
    reference: SampleFeatures,
    out: Path,
) -> None:
    """The samples of each system that are most and least like the reference's, as extremes.png."""
    rows = []
    for system in systems:
        order = np.argsort(neighbour_distances(samples[system].features, reference.features), kind="stable")
        chosen = {"most typical": order[:COLUMNS], "least typical": order[::-1][:COLUMNS]}
        for words, numbers in chosen.items():
            rows.append((f"{label(system.name, system.steps)}: {words}", pool.pictures(system, numbers.tolist())))
    grid(rows, [], out / "extremes.png")


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


def _sets_of(
    values: Mapping[str, NDArray[np.floating]], reference: str, units: NDArray[np.int64]
) -> dict[str, Features]:
    """Sets by name, and of the reference as much as each has: fewer samples are compared with as many."""
    sets = {name: Features(one, units[: len(one)]) for name, one in values.items()}
    counts = {len(one) for one in values.values()}
    return sets | {_first(count): Features(values[reference][:count], units[:count]) for count in counts}


def _first(count: int) -> str:
    """The set of the reference's first samples."""
    return f"reference, first {count}"


def _name(system: System) -> str:
    return f"{system.name} {system.sampler} {system.steps} {system.guidance_scale:g} {system.noise}"


def _called(reference: Reference) -> str:
    return {"teacher": "the teacher at many steps", "images": "real images", "statistics": "stored statistics"}[
        reference
    ]
