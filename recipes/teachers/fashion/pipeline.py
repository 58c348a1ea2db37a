"""Samples pictures of a class in pixel space: a diffusers pipeline that needs nothing but diffusers.

It is saved with a copy of this file beside the weights, so that no other package is needed to load it:

    DiffusionPipeline.from_pretrained(folder, custom_pipeline=folder, trust_remote_code=True)
"""

from __future__ import annotations

import inspect
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from diffusers import DiffusionPipeline, ImagePipelineOutput, SchedulerMixin, UNet2DConditionModel, UNet2DModel
from diffusers.models.embeddings import get_timestep_embedding
from diffusers.utils.torch_utils import randn_tensor
from PIL import Image
from torch import Tensor


class ClassConditionalPipeline(DiffusionPipeline):
    """A UNet with class embeddings, the last of which stands for no class, where it has one; pixels are in -1..1."""

    model_cpu_offload_seq = "unet"

    def __init__(
        self, unet: UNet2DConditionModel | UNet2DModel, scheduler: SchedulerMixin, has_null_class: bool = True
    ) -> None:
        super().__init__()
        if not unet.config["num_class_embeds"]:
            raise ValueError("unet: num_class_embeds is not set; this pipeline samples by class")
        self.register_modules(unet=unet, scheduler=scheduler)
        self.register_to_config(has_null_class=has_null_class)

    @property
    def has_null_class(self) -> bool:
        """Whether there is a label of no class, which guidance leads away from: the last one."""
        return self.config["has_null_class"]

    @property
    def null_class(self) -> int:
        """The label of no class, or where there is none the one after all classes."""
        return self.unet.config["num_class_embeds"] - self.has_null_class

    @torch.no_grad()
    def __call__(
        self,
        class_labels: Sequence[int] | Tensor,
        num_inference_steps: int = 50,
        guidance_scale: float = 1.0,
        latents: Tensor | None = None,
        generator: torch.Generator | list[torch.Generator] | None = None,
        eta: float = 0.0,
        output_type: str = "pil",
        return_dict: bool = True,
    ) -> ImagePipelineOutput | tuple[list[Image.Image] | np.ndarray | Tensor]:
        """One picture per label, from unit noise `latents` [n, channels, height, width] or noise of the generator's.

        A UNet with a guidance input takes guidance_scale as it is; of any other, guidance_scale > 1 asks for every
        picture's prediction twice, with and without its class. output_type is "pil", "np" ([n, height, width, 3])
        or "pt" ([n, 3, height, width]), the last two in 0..1.
        """
        device, dtype, config = self._execution_device, self.unet.dtype, self.unet.config
        labels = torch.as_tensor(class_labels, device=device)
        last = config["num_class_embeds"] - 1
        if not bool(((labels >= 0) & (labels <= last)).all()):
            raise ValueError(f"class_labels: {labels.tolist()} are not all in 0..{last}")
        if latents is None:
            shape = (len(labels), config["in_channels"], config["sample_size"], config["sample_size"])
            latents = randn_tensor(shape, generator=generator, device=device, dtype=dtype)
        self.scheduler.set_timesteps(num_inference_steps, device=device)
        x = latents.to(device, dtype) * self.scheduler.init_noise_sigma

        guidance_embedding = self._embed_guidance(torch.full((len(labels),), guidance_scale, device=device))
        is_doubled = guidance_scale > 1 and guidance_embedding is None
        if is_doubled and not self.has_null_class:
            raise ValueError(
                f"guidance_scale: {guidance_scale:g} needs a null class, and there is none; 1 is no guidance"
            )
        if is_doubled:
            labels = torch.cat([labels, torch.full_like(labels, self.null_class)])
        parameters = inspect.signature(self.scheduler.step).parameters
        options = {name: value for name, value in {"eta": eta, "generator": generator}.items() if name in parameters}
        times = self.progress_bar(self.scheduler.timesteps)  # pyright: ignore[reportCallIssue] - decorated
        for t in times:  # pyright: ignore[reportGeneralTypeIssues]
            x_in = self.scheduler.scale_model_input(torch.cat([x, x]) if is_doubled else x, t)
            output = self._predict(x_in, t, labels, guidance_embedding)
            if is_doubled:
                conditional, unconditional = output.chunk(2)
                output = unconditional + guidance_scale * (conditional - unconditional)
            x = self.scheduler.step(output, t, x, **options, return_dict=False)[0]
        self.maybe_free_model_hooks()
        images = self._convert(self.decode(x), output_type)
        if not return_dict:
            return (images,)
        return ImagePipelineOutput(images)  # pyright: ignore[reportArgumentType] - tensors too, as everywhere

    def _predict(self, x: Tensor, t: Tensor, labels: Tensor, guidance_embedding: Tensor | None) -> Tensor:
        if isinstance(self.unet, UNet2DModel):
            return self.unet(x, t, labels).sample
        return self.unet(x, t, None, class_labels=labels, timestep_cond=guidance_embedding).sample

    def _embed_guidance(self, guidance_scale: Tensor) -> Tensor | None:
        """The guidance input of the UNet, as StableDiffusionPipeline has it; None where the UNet has none."""
        width = None if isinstance(self.unet, UNet2DModel) else self.unet.config["time_cond_proj_dim"]
        if width is None:
            return None
        w = (guidance_scale - 1) * 1000
        return get_timestep_embedding(w, width, downscale_freq_shift=1).to(self.unet.dtype)

    def decode(self, latents: Tensor) -> Tensor:
        """Samples of the UNet to images [n, 3, height, width] in 0..1, float32; one channel is repeated."""
        return (latents.float() / 2 + 0.5).clamp(0, 1).expand(-1, 3, -1, -1)

    def _convert(self, images: Tensor, output_type: str) -> list[Image.Image] | np.ndarray | Tensor:
        if output_type == "pt":
            return images
        pixels = images.permute(0, 2, 3, 1).cpu().numpy()
        if output_type == "np":
            return pixels
        if output_type == "pil":
            return self.numpy_to_pil(pixels)
        raise ValueError(f"output_type: {output_type!r} is none of pil, np, pt")

    def save_config(self, save_directory: str | Path, push_to_hub: bool = False, **kwargs: object) -> None:
        """Write model_index.json, as save_pretrained does at its end, and this file as pipeline.py."""
        folder = Path(save_directory)
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(__file__, folder / "pipeline.py")
        super().save_config(folder, push_to_hub, **kwargs)
