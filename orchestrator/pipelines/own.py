"""Samples a model that is no diffusers class: a diffusers pipeline around what a factory makes.

It is saved with copies of this file, so that loading it takes diffusers and the package of the factory alone:

    DiffusionPipeline.from_pretrained(folder, custom_pipeline=folder, trust_remote_code=True)
"""

from __future__ import annotations

import importlib
import inspect
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Protocol, Self

import torch
from diffusers import (
    ConfigMixin,
    DiffusionPipeline,
    FlowMatchEulerDiscreteScheduler,
    FlowMatchLCMScheduler,
    ImagePipelineOutput,
    ModelMixin,
    SchedulerMixin,
)
from diffusers.configuration_utils import register_to_config
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor, nn


class Model(Protocol):
    """The part of what a factory returns that sampling needs."""

    network: nn.Module
    scheduler: SchedulerMixin
    shape: tuple[int, ...]
    encode: Callable[[Sequence[str]], dict[str, Tensor]]
    decode: Callable[[Tensor], Tensor] | None


def call_factory(factory: str) -> Model:
    """Import `package.module:function` and call it. Raises ImportError or KeyError where there is none."""
    module, _, name = factory.partition(":")
    return vars(importlib.import_module(module))[name]()


class OwnNetwork(ModelMixin, ConfigMixin):
    """The network of a factory, saved as the factory's name and the weights."""

    __module__ = "own"  # the name of the file beside the weights, where diffusers looks for it
    ignore_for_config = ["network"]

    @register_to_config
    def __init__(self, factory: str, network: nn.Module | None = None) -> None:
        """`network` is that of the factory's model, where the factory has run already."""
        super().__init__()
        self.network = network or call_factory(factory).network

    def forward(self, x_t: Tensor, time: Tensor, cond: Mapping[str, Tensor]) -> Tensor:
        """The network's raw output for samples [b, *shape] at times [b]."""
        return self.network(x_t, time, cond)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | os.PathLike | None, **kwargs: object) -> Self:
        """The factory runs with real weights: what it computes from them would be lost without."""
        return super().from_pretrained(pretrained_model_name_or_path, **{**kwargs, "low_cpu_mem_usage": False})

    def save_pretrained(self, save_directory: str | os.PathLike, **kwargs: object) -> None:  # pyright: ignore
        """Write the configuration, the weights and this file."""
        super().save_pretrained(save_directory, **kwargs)  # pyright: ignore[reportArgumentType]
        shutil.copyfile(__file__, Path(save_directory) / "own.py")


class OwnPipeline(DiffusionPipeline):
    """Samples of a factory's model, decoded where it has a decoder."""

    model_cpu_offload_seq = "network"

    def __init__(self, network: ModelMixin, scheduler: SchedulerMixin) -> None:
        super().__init__()
        self.register_modules(network=network, scheduler=scheduler)

    @cached_property
    def model(self) -> Model:
        """What the factory returns."""
        return call_factory(self.network.config["factory"])

    @torch.no_grad()
    def __call__(
        self,
        conditions: Sequence[str] = ("",),
        negative: str = "",
        num_inference_steps: int = 50,
        guidance_scale: float = 1.0,
        latents: Tensor | None = None,
        generator: torch.Generator | list[torch.Generator] | None = None,
        eta: float = 0.0,
        output_type: str = "pt",
        return_dict: bool = True,
    ) -> ImagePipelineOutput | tuple[Tensor]:
        """One sample per condition, from unit noise `latents` [n, *shape] or noise of the generator's.

        guidance_scale > 1 asks for every sample's prediction twice, with and without its condition. output_type "pt"
        is images [n, 3, height, width] in 0..1 where the model has a decoder; else, and for "latent", the samples.
        """
        device, dtype = self._execution_device, self.network.dtype
        if latents is None:
            shape = (len(conditions), *self.model.shape)
            latents = randn_tensor(shape, generator=generator, device=device, dtype=dtype)
        self._set_times(num_inference_steps)
        x, cond = latents.to(device, dtype), self._encode(conditions)
        if guidance_scale > 1:
            null = self._encode([negative] * len(conditions))
            cond = {name: torch.cat([value, null[name]]) for name, value in cond.items()}
        parameters = inspect.signature(self.scheduler.step).parameters
        options = {name: value for name, value in {"eta": eta, "generator": generator}.items() if name in parameters}
        times = self.progress_bar(self.scheduler.timesteps)  # pyright: ignore[reportCallIssue] - decorated
        for t in times:  # pyright: ignore[reportGeneralTypeIssues]
            x_in = torch.cat([x, x]) if guidance_scale > 1 else x
            output = self.network(x_in, t.to(device).expand(len(x_in)), cond)
            if guidance_scale > 1:
                conditional, unconditional = output.chunk(2)
                output = unconditional + guidance_scale * (conditional - unconditional)
            x = self.scheduler.step(output, t, x, **options, return_dict=False)[0]
        self.maybe_free_model_hooks()
        if self.model.decode is not None and output_type != "latent":
            x = (self.model.decode(x).float() / 2 + 0.5).clamp(0, 1)
        return ImagePipelineOutput(x) if return_dict else (x,)  # pyright: ignore[reportArgumentType] - as everywhere

    def _set_times(self, steps: int) -> None:
        scheduler: SchedulerMixin = self.scheduler
        device = self._execution_device
        if isinstance(scheduler, FlowMatchEulerDiscreteScheduler | FlowMatchLCMScheduler):
            # By themselves they spend the last step on what little is left a thousandth before clean data.
            scheduler.set_timesteps(sigmas=[1 - step / steps for step in range(steps)], device=device)
        else:
            self.scheduler.set_timesteps(steps, device=device)

    def _encode(self, conditions: Sequence[str]) -> dict[str, Tensor]:
        device, dtype = self._execution_device, self.network.dtype
        cond = self.model.encode(list(conditions)).items()
        return {name: value.to(device, dtype if value.is_floating_point() else value.dtype) for name, value in cond}

    def save_config(self, save_directory: str | Path, push_to_hub: bool = False, **kwargs: object) -> None:
        """Write model_index.json, as save_pretrained does at its end, and this file as pipeline.py."""
        folder = Path(save_directory)
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(__file__, folder / "pipeline.py")
        super().save_config(folder, push_to_hub, **kwargs)
