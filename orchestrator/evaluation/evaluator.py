"""Samples the pictures that are judged, and measures their features: all that evaluation does with networks, no Ray."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from fewstep.methods.diffusion import Denoiser
from fewstep.orchestrator.errors import BadInput
from fewstep.orchestrator.evaluation.appearance import appearance
from fewstep.orchestrator.evaluation.last_answer import last_answer
from fewstep.orchestrator.evaluation.system import (
    CALIBRATION,
    CALIBRATION_STEPS,
    PICTURE_PX,
    PICTURES,
    EvaluationSetting,
    SampleFeatures,
    System,
)
from fewstep.orchestrator.families.family import Family
from fewstep.orchestrator.features.feature_networks import FeatureNetwork, feature_network
from fewstep.orchestrator.inputs.images import open_images
from fewstep.orchestrator.sampling import analytic_dpm
from fewstep.orchestrator.sampling.guidance import GuidedDenoiser
from fewstep.orchestrator.sampling.ode import sample_path, unsupported_reason
from fewstep.orchestrator.sampling.schedules import num_train_timesteps
from fewstep.orchestrator.sampling.solvers import SOLVERS
from fewstep.orchestrator.teachers.folders import holds_pipeline
from fewstep.orchestrator.teachers.load import load_student
from fewstep.orchestrator.teachers.revision import folder_hash
from fewstep.orchestrator.teachers.teacher import Teacher


class Evaluator:
    """Samples systems in batches. A batch depends on the setting and its place alone, never on who makes it."""

    def __init__(self, setting: EvaluationSetting) -> None:
        torch.set_num_threads(setting.threads)
        self.setting = setting
        self._warm: set[tuple[str, bool]] = set()

    @cached_property
    def teacher(self) -> Teacher:
        """Loaded when it is first asked for, unless it is set."""
        return Teacher(self.setting.teacher, self.setting.device)

    @cached_property
    def _denoiser(self) -> Denoiser:
        return self.teacher.denoiser()

    @cached_property
    def _uncond(self) -> dict[str, Tensor]:
        return self.teacher.encode([self.setting.negative_prompt])

    @cached_property
    def student(self) -> Family:
        """Loaded when it is first asked for, unless it is set."""
        return without_safety_checker(
            load_student(self.setting.teacher, Path(self.setting.student), self.setting.device)
        )

    @cached_property
    def _features(self) -> FeatureNetwork:
        return feature_network(self.setting.features, self.setting.device)

    @cached_property
    def _check(self) -> FeatureNetwork | None:
        name = self.setting.check
        return feature_network(name, self.setting.device, "evaluation.check") if name else None

    def revisions(self) -> dict[str, str]:
        """Hashes of what is judged. Raises BadInput where the teacher is told something and nobody says what."""
        if self.teacher.family.is_conditional and self.setting.prompts == ("",):
            raise BadInput("evaluation.prompts is missing; the teacher is judged on them")
        teacher, student = self.teacher.card.revision, Path(self.setting.student)
        if not self.setting.student:
            return {"teacher": teacher}
        on = "" if holds_pipeline(student) else f" on {teacher}"
        return {"teacher": teacher, "student": folder_hash(student) + on}

    def unsupported_reason(self, solver: str, evaluations: int) -> str:
        """Why a solver cannot sample the teacher, or nothing."""
        return unsupported_reason(
            solver, self._steps(solver, evaluations), self.teacher.prediction, self.teacher.scheduler
        )

    def _steps(self, solver: str, evaluations: int) -> int:
        """In the solver's own count."""
        times = num_train_timesteps(self.teacher.scheduler)
        return SOLVERS[solver].steps_within(evaluations, times)

    @torch.inference_mode()
    def calibrate(self, guidance_scale: float) -> list[float]:
        """The variances of Analytic-DPM, from the guided teacher's own samples: training images are not at hand."""
        size, heun, tables = self.setting.batch_size, SOLVERS["heun"], []
        for start in range(0, CALIBRATION, size):
            samples = range(start, min(start + size, CALIBRATION))
            guided = self._guided(guidance_scale, [self.setting.prompt(i) for i in samples])
            noise, other = (self._noise(role, samples) for role in ("calibration", "calibration noise"))
            states, _ = sample_path(heun, self.teacher.scheduler, guided, noise, CALIBRATION_STEPS)
            tables.append(len(samples) / CALIBRATION * analytic_dpm.calibrate(guided, states[:, -1], other))
        return sum(tables[1:], tables[0]).tolist()

    def measure(self, system: System, samples: range, variances: Sequence[float] = ()) -> SampleFeatures:
        """One batch of a system's samples; a stochastic solver is told what `calibrate` found."""
        return self._image_features(self._paint(system, samples, variances), samples)

    def sample(self, system: System, samples: Sequence[int], variances: Sequence[float] = ()) -> Tensor:
        """Images [n, 3, height, width] in 0..1."""
        return self._paint(system, samples, variances).clamp(0, 1)

    @torch.inference_mode()
    def _paint(self, system: System, samples: Sequence[int], variances: Sequence[float]) -> Tensor:
        """Images as they come from the decoder, which may leave the range of 0..1."""
        prompts = [self.setting.prompt(i, system.noise) for i in samples]
        noise = self._noise(system.noise, samples)
        if system.name == "student":
            images = self._sample_student(system, prompts, noise, samples)
        else:
            images = self._sample_teacher(system, prompts, noise, samples, variances)
        return images.float().cpu() / 2 + 0.5

    def _noise(self, role: str, samples: Sequence[int]) -> Tensor:
        shape = self.teacher.family.latent_shape
        noise = [torch.randn(shape, generator=self.setting.generator(role, i)) for i in samples]
        return torch.stack(noise).to(self.setting.device)

    def _guided(self, guidance_scale: float, prompts: list[str]) -> GuidedDenoiser:
        scale = torch.full((len(prompts),), guidance_scale, device=self.setting.device)
        return GuidedDenoiser(self._denoiser, self.teacher.encode(prompts), self._uncond, scale)

    def _sample_teacher(
        self, system: System, prompts: list[str], noise: Tensor, samples: Sequence[int], variances: Sequence[float]
    ) -> Tensor:
        solver = SOLVERS[system.sampler]
        if solver.is_stochastic:
            generators = [self.setting.generator(f"{system.noise} steps", i) for i in samples]
            solver = replace(solver, options={"variances": variances, "generators": generators})
        guided, steps = self._guided(system.guidance_scale, prompts), self._steps(system.sampler, system.steps)
        states, _ = sample_path(solver, self.teacher.scheduler, guided, noise, steps)
        return self.teacher.family.decode(states[:, -1])

    def _sample_student(self, system: System, prompts: list[str], noise: Tensor, samples: Sequence[int]) -> Tensor:
        """Sample as a user would, by the exported pipeline with its own scheduler, but look before it clamps."""
        pipeline, roles = self.student.pipeline, (system.noise, f"{system.noise} steps")
        starting, stepping = ([self.setting.generator(role, i) for i in samples] for role in roles)
        eta = {"eta": self.setting.call.eta} if self.setting.call.eta else {}
        vae = pipeline.components.get("vae")
        watched = last_answer(vae, "decode") if vae else last_answer(pipeline.scheduler, "step")
        with torch.random.fork_rng(), watched as answers:
            # Not every pipeline hands its generators on to its scheduler.
            torch.manual_seed(stepping[0].initial_seed())
            pipeline(
                **self.student.call_arguments(
                    prompts, self.setting.call.negative_prompt, system.steps, system.guidance_scale
                ),
                **self.student.noise_arguments(noise, starting, stepping),
                **eta,
                output_type="pt",
            )
        (answer,) = answers
        return answer if vae else self.student.decode(answer)

    def seconds_per_image(self, system: System, variances: Sequence[float] = ()) -> float:
        """End to end for one full batch, prompts to pixels; what only the first batch pays is left out."""
        batch = range(self.setting.batch_size)
        kind = (system.name, system.guidance_scale > 1)
        if kind not in self._warm:
            self.sample(replace(system, steps=1), batch, variances)
            self._warm.add(kind)
        started = time.perf_counter()
        self.sample(system, batch, variances)
        return (time.perf_counter() - started) / len(batch)

    def measure_images(self, file: str, samples: range) -> SampleFeatures:
        """Real images, cut and brought to the teacher's size, so that size makes no difference."""
        images = open_images(file, "evaluation.images")
        return self._image_features(images.pixels(samples, self.teacher.family.image_size), samples)

    def measure_texts(self) -> NDArray[np.float32] | None:
        """The features of each prompt [prompts, d], where the network reads text and the teacher paints it."""
        if not self._features.reads or self.teacher.family.usage.task != "text-to-image":
            return None
        return self._features.read(self.setting.prompts).numpy()

    def labels(self) -> dict[str, str]:
        """What figures call the networks, by name."""
        networks = (network for network in (self._features, self._check) if network)
        return {network.name: network.label(self.teacher.family.image_size) for network in networks}

    def num_features(self) -> int:
        """How many features a picture has."""
        return self._features(torch.zeros(1, 3, 64, 64)).shape[1]

    def pictures(self, system: System, samples: Sequence[int], variances: Sequence[float] = ()) -> NDArray[np.uint8]:
        """Some of a system's samples to look at, [n, height, width, 3]."""
        size = self.setting.batch_size
        batches = [samples[start : start + size] for start in range(0, len(samples), size)]
        return np.concatenate([_thumbnails(self.sample(system, batch, variances)) for batch in batches])

    def _image_features(self, images: Tensor, samples: range) -> SampleFeatures:
        shown = images.clamp(0, 1)
        check = self._check(shown) if self._check else torch.empty(len(images), 0)
        return SampleFeatures(
            self._features(shown).half().cpu().numpy(),
            check.half().cpu().numpy(),
            appearance(images).numpy(),
            _thumbnails(shown[: max(0, PICTURES - samples.start)]),
            self.setting.check,
        )


def without_safety_checker(family: Family) -> Family:
    """A family whose pipeline blacks out none of its pictures: the teacher's are not blacked out either."""
    if "safety_checker" in family.pipeline.components:
        family.pipeline.register_modules(safety_checker=None)
    return family


def _thumbnails(images: Tensor) -> NDArray[np.uint8]:
    longest = max(images.shape[-2:])
    if longest > PICTURE_PX and len(images):
        images = F.interpolate(images, scale_factor=PICTURE_PX / longest, mode="bilinear", antialias=True)
    return (images.permute(0, 2, 3, 1) * 255).round().to(torch.uint8).numpy()
