"""Says what an evaluation samples: a network with a sampler, the setting they share, and what is measured of them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray

from fewstep.orchestrator.recipe.teacher import TeacherSpec
from fewstep.orchestrator.students.inference import InferenceArguments

CALIBRATION = 64  # of the teacher's samples
CALIBRATION_STEPS = 25  # of Heun's method, which samples every teacher
PICTURES = 36  # of each system, kept to be looked at
PICTURE_PX = 256  # at most
VARIETY = 8  # samples of one prompt that are compared with each other
VARIED = 8 * VARIETY  # samples of so many prompts
Noise = Literal["judged", "reference", "selection", "selection reference", "variety"]


@dataclass(frozen=True)
class System:
    """A network with a way to sample it. Systems of one `noise` start from the same noise for the same prompts.

    All noises take the prompts in turn but "variety", which takes each several times, to see what noise alone changes.
    """

    name: Literal["teacher", "student"]
    sampler: str  # one of SOLVERS for the teacher; the student brings its own
    steps: int  # evaluations of the network: a solver that takes several a step takes fewer steps
    guidance_scale: float
    noise: Noise = "judged"


@dataclass(frozen=True)
class EvaluationSetting:
    """What all systems of an evaluation have in common."""

    teacher: TeacherSpec
    student: str  # the exported folder; "" where the teacher is judged alone
    call: InferenceArguments
    negative_prompt: str
    prompts: tuple[str, ...]
    features: str
    check: str  # a second network; "" for none
    seed: int
    batch_size: int
    device: str
    threads: int

    def prompt(self, sample: int, noise: Noise = "judged") -> str:
        """Prompts are taken in turn, so that every number of samples repeats them evenly."""
        return self.prompts[(sample // VARIETY if noise == "variety" else sample) % len(self.prompts)]

    def generator(self, role: str, sample: int) -> torch.Generator:
        """Where a sample's random numbers come from: a function of its number and what they are for."""
        digest = hashlib.sha256(json.dumps([self.seed, role, sample]).encode()).digest()
        return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big"))


@dataclass(frozen=True)
class SampleFeatures:
    """Features of pictures, how they look, and the first of the pictures themselves."""

    features: NDArray[np.float16]  # [n, d]
    check: NDArray[np.float16]  # [n, e], by a second network; no columns where there is none
    appearance: NDArray[np.float32]  # [n, LOOKS]
    pictures: NDArray[np.uint8]  # [at most PICTURES, height, width, 3]
    check_network: str = ""

    @staticmethod
    def join(batches: Sequence[SampleFeatures]) -> SampleFeatures:
        """Batches in order as one."""
        return SampleFeatures(
            features=np.concatenate([batch.features for batch in batches]),
            check=np.concatenate([batch.check for batch in batches]),
            appearance=np.concatenate([batch.appearance for batch in batches]),
            pictures=np.concatenate([batch.pictures for batch in batches]),
            check_network=batches[0].check_network,
        )

    def first(self, count: int) -> SampleFeatures:
        """Of the first `count` samples."""
        return SampleFeatures(
            features=self.features[:count],
            check=self.check[:count],
            appearance=self.appearance[:count],
            pictures=self.pictures[:count],
            check_network=self.check_network,
        )
