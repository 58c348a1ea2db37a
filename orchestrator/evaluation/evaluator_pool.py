"""Measures systems on the cluster: actors share their samples, and what was measured before is not measured again."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Concatenate, ParamSpec, TypeVar, cast

import numpy as np
import ray
from numpy.typing import NDArray
from ray.actor import ActorHandle
from ray.util import ActorPool

from fewstep.orchestrator.compute.cluster import connect, require, worker_bundle
from fewstep.orchestrator.compute.tasks import device_of, options, unwrap_bad_input
from fewstep.orchestrator.errors import BadInput
from fewstep.orchestrator.evaluation.feature_cache import FeatureFiles, Key
from fewstep.orchestrator.evaluation.system import (
    CALIBRATION,
    CALIBRATION_STEPS,
    EvaluationSetting,
    SampleFeatures,
    System,
)
from fewstep.orchestrator.features.feature_networks import features_label
from fewstep.orchestrator.features.picture_sizes import SMALLEST_PX
from fewstep.orchestrator.files import write_whole
from fewstep.orchestrator.inputs.images import open_images
from fewstep.orchestrator.inputs.prompts import prompts_digest, read_prompts
from fewstep.orchestrator.observability.console import progress, say
from fewstep.orchestrator.observability.metrics import Recorder
from fewstep.orchestrator.recipe.evaluation import Evaluation
from fewstep.orchestrator.recipe.recipe import Recipe
from fewstep.orchestrator.sampling import analytic_dpm
from fewstep.orchestrator.sampling.solvers import SOLVERS
from fewstep.orchestrator.students.inference import InferenceArguments

if TYPE_CHECKING:
    from fewstep.orchestrator.evaluation.evaluator import Evaluator

PROTOCOL = 1  # goes up when the same setting would give other samples
RESTARTS = 3  # of an actor that dies, and of the batch that it was making
ALONE = InferenceArguments()  # of a teacher that is judged without a student
Answer = TypeVar("Answer")
Arguments = ParamSpec("Arguments")


@dataclass(frozen=True)
class SolverVariances:
    """What a stochastic solver of the teacher has to know, on disk as it is here."""

    variances: tuple[float, ...]


@dataclass(frozen=True)
class SampleBatch:
    """Some samples of a system, or some rows of a file of images."""

    of: System | str
    samples: range
    variances: tuple[float, ...] = ()  # that a stochastic solver is told


class EvaluatorActor:
    """An Evaluator in a process of its own."""

    def __init__(self, setting: EvaluationSetting) -> None:
        self._setting = setting

    @cached_property
    def _evaluator(self) -> Evaluator:
        # Not in __init__, whose errors Ray would turn into the actor's death.
        from fewstep.orchestrator.evaluation.evaluator import Evaluator

        return Evaluator(self._setting)

    def revisions(self) -> dict[str, str]:
        """Hashes of what is judged."""
        return self._evaluator.revisions()

    def unsupported_reason(self, solver: str, evaluations: int) -> str:
        """Why it cannot sample the teacher, or nothing."""
        return self._evaluator.unsupported_reason(solver, evaluations)

    def measure(self, batch: SampleBatch) -> tuple[SampleBatch, SampleFeatures]:
        """The features of one batch, and whose they are: answers come in any order."""
        if isinstance(batch.of, str):
            return batch, self._evaluator.measure_images(batch.of, batch.samples)
        return batch, self._evaluator.measure(batch.of, batch.samples, batch.variances)

    def pictures(self, system: System, samples: Sequence[int], variances: tuple[float, ...]) -> NDArray[np.uint8]:
        """Some of a system's samples to look at."""
        return self._evaluator.pictures(system, samples, variances)

    def calibrate(self, guidance_scale: float) -> list[float]:
        """What a stochastic solver has to be told."""
        return self._evaluator.calibrate(guidance_scale)

    def measure_texts(self) -> NDArray[np.float32] | None:
        """The prompts."""
        return self._evaluator.measure_texts()

    def labels(self) -> dict[str, str]:
        """What figures call the networks."""
        return self._evaluator.labels()

    def image_size(self) -> tuple[int, int]:
        """Height and width of the teacher's pictures."""
        return self._evaluator.teacher.family.image_size

    def num_features(self) -> int:
        """How many features a picture has."""
        return self._evaluator.num_features()

    def seconds_per_image(self, system: System, variances: tuple[float, ...]) -> float:
        """Timed on this actor."""
        return self._evaluator.seconds_per_image(system, variances)


class EvaluatorPool:
    """Measures systems; whatever is in the feature files already is taken from there."""

    def __init__(
        self,
        setting: EvaluationSetting,
        actors: Sequence[ActorHandle],
        files: FeatureFiles,
        timings: Path,
        recorder: Recorder,
    ) -> None:
        self.setting, self.files = setting, files
        self._actors, self._timings, self._recorder = actors, timings, recorder
        self.revisions = self._ask(EvaluatorActor.revisions)
        height, width = self._ask(EvaluatorActor.image_size)
        is_usual = height == width <= SMALLEST_PX and not setting.teacher.sizes  # keys leave the usual out
        self._size = {} if is_usual else {"image_size": [height, width]}
        self._refusals: dict[tuple[str, int], str] = {}  # of solvers and numbers of steps

    def key(self, system: System) -> Key:
        """All that a system's features depend on."""
        setting = self.setting
        facts = {
            "protocol": PROTOCOL,
            "revision": self.revisions[system.name],
            "dtype": setting.teacher.dtype,
            **({"compile": True} if setting.teacher.compile else {}),
            **self._size,
            "prompts": prompts_digest(setting.prompts),
            "negative_prompt": setting.negative_prompt,
            "call": vars(setting.call) if system.name == "student" else {},
            "seed": setting.seed,
            "batch_size": setting.batch_size,
            "features": setting.features,
            **vars(system),
        }
        return Key(key_name(system), facts)

    def images_key(self, file: str) -> Key:
        """All that the features of real images depend on, the teacher for its size."""
        digest = open_images(file, "evaluation.images").digest()
        facts = {"protocol": PROTOCOL, "images": digest, "teacher": self.revisions["teacher"], **self._size}
        return Key("images", facts | {"features": self.setting.features, "batch_size": self.setting.batch_size})

    def supported(self, solvers: Sequence[str], steps: int) -> list[str]:
        """The solvers that can sample the teacher in so many evaluations. Raises BadInput where there is none."""
        for solver in solvers:
            if (solver, steps) not in self._refusals:
                why = self._ask(EvaluatorActor.unsupported_reason, solver, steps)
                self._refusals[solver, steps] = why
                if why:
                    say(f"not a candidate: {why}")
        able = [solver for solver in solvers if not self._refusals[solver, steps]]
        if not able:
            raise BadInput(f"evaluation.solvers: {self._refusals[solvers[0], steps]}")
        return able

    def measure(self, systems: Sequence[System], count: int, description: str) -> list[SampleFeatures]:
        """`count` samples of each system, in their order."""
        keys = {system: self.key(system) for system in systems}
        self._make({system: (key, count) for system, key in keys.items()}, description)
        return [self._recall(keys[system], count) for system in systems]

    def measure_images(self, file: str) -> SampleFeatures:
        """All real images of a file."""
        count = len(open_images(file, "evaluation.images"))
        key = self.images_key(file)
        self._make({file: (key, count)}, "real images")
        return self._recall(key, count)

    def measure_texts(self) -> NDArray[np.float32] | None:
        """The features of the prompts, in the space of the pictures'; None where they have none."""
        return self._ask(EvaluatorActor.measure_texts)

    def labels(self) -> dict[str, str]:
        """What figures call the networks, by name."""
        return self._ask(EvaluatorActor.labels)

    def num_features(self) -> int:
        """How many features a picture has."""
        return self._ask(EvaluatorActor.num_features)

    def pictures(self, system: System, samples: Sequence[int]) -> NDArray[np.uint8]:
        """Some of a system's samples to look at, [n, height, width, 3]."""
        return self._ask(EvaluatorActor.pictures, system, samples, self._variances(system))

    def seconds_per_image(self, systems: Sequence[System]) -> dict[System, float]:
        """Timed one after the other on one actor, while the others rest."""
        timings = json.loads(self._timings.read_text()) if self._timings.exists() else {}
        stems = {system: self.key(system).stem for system in systems}
        missing = [system for system, stem in stems.items() if stem not in timings]
        with _shown("timing", len(missing)) as advance:
            for system in missing:
                variances = self._variances(system)
                timings[stems[system]] = self._ask(EvaluatorActor.seconds_per_image, system, variances)
                write_whole(self._timings, json.dumps(timings, indent=1))
                advance(1)
        return {system: timings[stem] for system, stem in stems.items()}

    def _variances(self, of: System | str) -> tuple[float, ...]:
        """What a stochastic solver of the teacher is told, found once and kept."""
        if isinstance(of, str) or of.name == "student" or not SOLVERS[of.sampler].is_stochastic:
            return ()
        facts = {**self.key(of).facts, "calibration": [CALIBRATION, CALIBRATION_STEPS, analytic_dpm.GRID]}
        depends = {name: fact for name, fact in facts.items() if name not in ("features", "sampler", "steps", "noise")}
        key = Key(f"variances-{of.guidance_scale:g}", depends)
        decision = self.files.recall(key, SolverVariances)
        if decision is None:
            decision = SolverVariances(tuple(self._ask(EvaluatorActor.calibrate, of.guidance_scale)))
            self.files.decide(key, asdict(decision))
        return decision.variances

    def _recall(self, key: Key, count: int) -> SampleFeatures:
        features = self.files.find(key, count)
        assert features is not None
        return features

    def _ask(
        self,
        method: Callable[Concatenate[EvaluatorActor, Arguments], Answer],
        *arguments: Arguments.args,
        **options: Arguments.kwargs,
    ) -> Answer:
        """What one method of the first actor returns."""
        with unwrap_bad_input():
            return ray.get(getattr(self._actors[0], method.__name__).remote(*arguments, **options))

    def _make(self, wanted: Mapping[System | str, tuple[Key, int]], description: str) -> None:
        """Measure what is missing. A file is written as soon as its last batch is there."""
        missing = {of: (key, n) for of, (key, n) in wanted.items() if self.files.find(key, n) is None}
        size = self.setting.batch_size
        batches = {
            of: [SampleBatch(of, range(start, min(start + size, n)), variances) for start in range(0, n, size)]
            for of, (_, n) in missing.items()
            for variances in [self._variances(of)]
        }
        done: dict[System | str, dict[int, SampleFeatures]] = {of: {} for of in missing}
        pool = ActorPool(list(self._actors))
        answers = pool.map_unordered(lambda actor, batch: actor.measure.remote(batch), sum(batches.values(), []))
        planned, count = sum(n for _, n in missing.values()), 0
        with _shown(description, planned) as advance:
            for batch, measured in _each(answers):
                by_start = done[batch.of]
                by_start[batch.samples.start] = measured
                count += len(batch.samples)
                advance(len(batch.samples))
                self._recorder.record(count, {"evaluate/samples": count, "evaluate/samples_planned": planned})
                if len(by_start) == len(batches[batch.of]):
                    whole = SampleFeatures.join([by_start[start] for start in sorted(by_start)])
                    self.files.keep(missing[batch.of][0], whole)
                    done[batch.of] = {}


def key_name(system: System) -> str:
    """What people call a system's features."""
    words = (system.noise, system.name, system.sampler, f"{system.steps}-steps", f"{system.guidance_scale:g}")
    return "-".join(words).replace(" ", "-").replace("+", "p")


def evaluation_prompts(evaluation: Evaluation) -> list[str]:
    """The prompts in an order of chance, so that any number of samples has a fair share of them."""
    prompts = read_prompts(evaluation.prompts, "evaluation.prompts", distinct=not evaluation.protocol)
    order = np.random.default_rng(evaluation.seed).permutation(len(prompts))
    return [prompts[number] for number in order]


@contextmanager
def open_pool(
    recipe: Recipe, prompts: Sequence[str], out: Path, student: str = "", call: InferenceArguments = ALONE
) -> Iterator[EvaluatorPool]:
    """Start the actors that a recipe asks for; `out` keeps the features. Connects to the cluster by itself."""
    connect(recipe.resources)
    evaluation, resources = recipe.evaluation, recipe.resources
    features_label(evaluation.features)
    if evaluation.check:
        features_label(evaluation.check, "evaluation.check")
    require(resources, [worker_bundle(resources)] * resources.generators, "resources.generators")
    setting = EvaluationSetting(
        teacher=recipe.teacher,
        student=student,
        call=call,
        negative_prompt=recipe.trajectories.negative_prompt,
        prompts=tuple(prompts),
        features=evaluation.features,
        check=evaluation.check,
        seed=evaluation.seed,
        batch_size=evaluation.batch_size,
        device=device_of(resources),
        threads=resources.threads_per_worker,
    )
    remote = ray.remote(EvaluatorActor).options(max_restarts=RESTARTS, max_task_retries=RESTARTS, **options(resources))
    actors = [cast(ActorHandle, remote.remote(setting)) for _ in range(resources.generators)]
    try:
        files = FeatureFiles(out / "features", evaluation.baselines, evaluation.check)
        recorder = Recorder(out / "progress.jsonl", Path(recipe.output).name, recipe.method.name)
        yield EvaluatorPool(setting, actors, files, out / "timings.json", recorder)
    finally:
        for actor in actors:
            ray.kill(actor)


@contextmanager
def _shown(description: str, total: int) -> Iterator[Callable[[int], None]]:
    """A bar, where there is something to do."""
    if not total:
        yield lambda count: None
        return
    with progress(description, total) as bar:
        yield bar.advance


def _each(answers: Iterator[Answer]) -> Iterator[Answer]:
    with unwrap_bad_input():
        yield from answers
