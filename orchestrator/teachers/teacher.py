"""Shows a loaded, frozen pipeline as a denoiser, a text encoder and a decoder."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from fewstep.methods.diffusion import Denoiser, Prediction
from fewstep.methods.schedules import Schedule
from fewstep.orchestrator.errors import BadInput
from fewstep.orchestrator.families.family import Family
from fewstep.orchestrator.recipe.section import Json
from fewstep.orchestrator.recipe.teacher import TeacherSpec
from fewstep.orchestrator.sampling.schedules import is_flow_matching, prediction_of, schedule_of
from fewstep.orchestrator.teachers.card import TeacherCard
from fewstep.orchestrator.teachers.load import load
from fewstep.orchestrator.teachers.revision import factory_hash, folder_hash


class Teacher:
    """A loaded pipeline, frozen, on one device."""

    def __init__(
        self,
        spec: TeacherSpec,
        device: str | torch.device = "cpu",
        load: Callable[[TeacherSpec, torch.device], Family] = load,
    ) -> None:
        self.spec, self.device = spec, torch.device(device)
        self.family = load(spec, self.device)
        self.pipeline, self.network = self.family.pipeline, self.family.network
        if spec.compile:  # in place: copies, which students are made of, are not
            self.network.compile(dynamic=False)  # the bits of a batch must not depend on the sizes of those before

    @cached_property
    def card(self) -> TeacherCard:
        """What a plan has to know. All of the pipeline's files are read for it."""
        return TeacherCard(
            revision=self._revision(),
            pipeline=type(self.pipeline).__name__,
            scheduler=self.scheduler,
            prediction=self.prediction,
            latent_shape=self.family.latent_shape,
            has_guidance_input=self.network.has_guidance_input,
            is_compiled=self.spec.compile,
            has_pictures=self.family.has_pictures,
            latent_shapes=self.family.latent_shapes if len(self.family.latent_shapes) > 1 else (),
        )

    def _revision(self) -> str:
        if self.spec.factory:
            return factory_hash(self.spec.factory, self.network)
        return self.spec.revision or folder_hash(Path(self.spec.folder))

    @cached_property
    def scheduler(self) -> Json:
        """The configuration of the pipeline's scheduler as it was loaded, by which all others are made."""
        config = {name: value for name, value in self.pipeline.scheduler.config.items() if not name.startswith("_")}
        # -inf, a default of DPM-Solver's, does not survive JSON; from_config puts it back.
        config = {name: value for name, value in config.items() if value not in (math.inf, -math.inf)}
        if is_flow_matching(config):
            if "shift" not in config:
                raise BadInput(
                    f"teacher: its {type(self.pipeline.scheduler).__name__} has neither betas nor a shift of straight "
                    "paths; fewstep distills teachers with DDPM's, DDIM's, Euler's and flow matching's noise levels"
                )
            if config.get("use_dynamic_shifting"):  # the size is fixed, and so is the shift
                config |= {"shift": self.family.shift(config), "use_dynamic_shifting": False}
            # The same, as those schedulers say it that are not of flow matching alone.
            config |= {"prediction_type": "flow_prediction", "use_flow_sigmas": True, "flow_shift": config["shift"]}
        return json.loads(json.dumps(config))

    @property
    def prediction(self) -> Prediction:
        """What the network's output means."""
        return prediction_of(self.scheduler)

    @property
    def schedule(self) -> Schedule:
        """The noise levels that the network was trained on."""
        return schedule_of(self.scheduler)

    def denoiser(self) -> Denoiser:
        """The network with the meaning of its output."""
        return Denoiser(self.network, self.schedule, self.prediction, self.network.has_guidance_input)

    def encode(self, conditions: Sequence[str]) -> dict[str, Tensor]:
        """What the network is conditioned on, one row per prompt or class."""
        return self.family.encode(conditions)

    def latents(self, images: Tensor, noise: Tensor) -> Tensor:
        """Images [n, 3, height, width] in 0..1 to latents [n, *latent], float32; the inverse of `decode`."""
        return self.family.latents(2 * images - 1, noise)

    @torch.inference_mode()
    def decode(self, latents: Tensor) -> Tensor:
        """Latents [n, *latent] to images [n, 3, height, width] in 0..1, float32."""
        return (self.family.decode(latents) / 2 + 0.5).clamp(0, 1)
