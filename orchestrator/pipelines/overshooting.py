"""Steps like DDIM, two towards clean data and one back in fresh noise: a scheduler that needs diffusers alone.

It is saved with a copy of this file beside its configuration, so that no other package is needed to load it:

    DiffusionPipeline.from_pretrained(folder, trust_remote_code=True)
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import torch
from diffusers import DDIMScheduler
from diffusers.schedulers.scheduling_ddim import DDIMSchedulerOutput
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor


class OvershootingScheduler(DDIMScheduler):
    """The stochastic sampler of arXiv:2210.03142, section 3.3. The number of steps must divide the training's."""

    __module__ = "overshooting"  # the name of the file beside the configuration, where diffusers looks for it

    def step(
        self,
        model_output: Tensor,
        timestep: int,
        sample: Tensor,
        generator: torch.Generator | None = None,
        return_dict: bool = True,
    ) -> DDIMSchedulerOutput | tuple[Tensor, Tensor]:
        """From timestep t in N steps of T: to t - 2 T / N without noise, from there back to t - T / N."""
        output = super().step(model_output, timestep, sample)
        assert isinstance(output, DDIMSchedulerOutput) and output.pred_original_sample is not None
        x0 = output.pred_original_sample
        stride = self.config["num_train_timesteps"] // self.num_inference_steps
        level, near, far = (self._level(int(timestep) - steps * stride) for steps in range(3))
        eps = (sample - level.sqrt() * x0) / (1 - level).sqrt()
        state = far.sqrt() * x0 + (1 - far).sqrt() * eps
        noise = randn_tensor(sample.shape, generator=generator, device=sample.device, dtype=sample.dtype)
        ratio = near / far  # 1 where both are clean data
        state = ratio.sqrt() * state + (1 - ratio).sqrt() * noise
        return DDIMSchedulerOutput(state, x0) if return_dict else (state, x0)

    def _level(self, timestep: int) -> Tensor:
        """alpha^2 at a timestep; before the first one, that of clean data."""
        return self.alphas_cumprod[timestep] if timestep >= 0 else self.final_alpha_cumprod

    def save_pretrained(self, save_directory: str | os.PathLike, push_to_hub: bool = False, **kwargs: object) -> None:
        """Write the configuration and this file."""
        super().save_pretrained(save_directory, push_to_hub, **kwargs)
        shutil.copyfile(__file__, Path(save_directory) / "overshooting.py")
