"""Steps evenly along straight paths in any pipeline: a scheduler that needs diffusers alone.

It is saved with a copy of this file beside its configuration, so that no other package is needed to load it:

    DiffusionPipeline.from_pretrained(folder, trust_remote_code=True)
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from pathlib import Path

import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from torch import Tensor


class EvenFlowScheduler(FlowMatchEulerDiscreteScheduler):
    """Its N steps start at noise levels that fall evenly from 1 to 1 / N and are shifted once.

    By themselves diffusers' flow-matching schedulers shift twice, and spend the last step on what little noise is left
    a thousandth before clean data; and pipelines of variance-preserving models cannot call them.
    """

    __module__ = "even_flow"  # the name of the file beside the configuration, where diffusers looks for it
    init_noise_sigma = 1.0

    def scale_model_input(self, sample: Tensor, timestep: float | Tensor | None = None) -> Tensor:
        """The sample as it is."""
        return sample

    def set_timesteps(
        self,
        num_inference_steps: int | None = None,
        device: str | torch.device | None = None,
        sigmas: Sequence[float] | None = None,
        mu: float | None = None,
        timesteps: Sequence[float] | None = None,
    ) -> None:
        """Even steps, where nothing else is asked for."""
        if num_inference_steps and sigmas is None and timesteps is None:
            sigmas = [1 - step / num_inference_steps for step in range(num_inference_steps)]
        super().set_timesteps(num_inference_steps, device, sigmas, mu, timesteps)  # pyright: ignore[reportArgumentType]

    def save_pretrained(self, save_directory: str | os.PathLike, push_to_hub: bool = False, **kwargs: object) -> None:
        """Write the configuration and this file."""
        super().save_pretrained(save_directory, push_to_hub, **kwargs)
        shutil.copyfile(__file__, Path(save_directory) / "even_flow.py")
