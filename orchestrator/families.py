"""The kinds of diffusers pipelines that can be distilled, behind one face."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar, cast

import torch
from diffusers import (
    AutoencoderKL,
    DiffusionPipeline,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
)
from torch import Tensor, nn

from orchestrator.errors import BadInput, nearest
from orchestrator.family import Family, LatentFamily, drawn
from orchestrator.flow_families import Flux, StableDiffusion3
from orchestrator.network import ADAPTER
from orchestrator.pipelines.class_conditional import ClassConditionalPipeline
from orchestrator.pipelines.overshooting import OvershootingScheduler
from orchestrator.recipe import TeacherSpec
from orchestrator.unet import UNetNetwork

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
TextPipeline = TypeVar("TextPipeline", StableDiffusionPipeline, StableDiffusionXLPipeline)


@contextmanager
def in_range(vae: AutoencoderKL) -> Iterator[None]:
    """Compute in float32 where an autoencoder says that its numbers are too large for float16."""
    overflows = vae.dtype == torch.float16 and bool(vae.config["force_upcast"])
    if overflows:
        nn.Module.to(vae, torch.float32)
    try:
        yield
    finally:
        if overflows:
            nn.Module.to(vae, torch.float16)


class UNetText(LatentFamily[TextPipeline]):
    """Text to image with a UNet."""

    @property
    def network(self) -> UNetNetwork:
        """The UNet."""
        return UNetNetwork(self.pipeline.unet)

    @property
    def own_shape(self) -> tuple[int, int]:
        """As the UNet was trained."""
        return self.pipeline.unet.config.in_channels, self.pipeline.unet.config.sample_size

    def decode(self, latents: Tensor) -> Tensor:
        """Through the autoencoder, in float32 where its numbers are too large for float16."""
        vae = self.pipeline.vae
        with in_range(vae):
            return vae.decode(latents.to(vae.device, vae.dtype) / vae.config.scaling_factor).sample.float()

    @torch.inference_mode()
    def latents(self, images: Tensor, noise: Tensor) -> Tensor:
        """Drawn from what the autoencoder believes, as the teacher's own training data was."""
        vae = self.pipeline.vae
        with in_range(vae):
            return drawn(vae, images, noise) * vae.config.scaling_factor


class StableDiffusion(UNetText[StableDiffusionPipeline]):
    """One text encoder: Stable Diffusion 1 and 2."""

    pipeline_class = StableDiffusionPipeline

    @torch.inference_mode()
    def encode(self, conditions: Sequence[str]) -> dict[str, Tensor]:
        """Prompts as `prompt` [n, tokens, width]."""
        prompt, _ = self.pipeline.encode_prompt(list(conditions), self.pipeline.device, 1, False)
        return {"prompt": prompt}

    def call(self, conditions: Sequence[str], negative: str, steps: int) -> Mapping[str, object]:
        """Prompts and negative prompts."""
        negatives = [negative] * len(conditions)
        prompts = {"prompt": list(conditions), "negative_prompt": negatives}
        return {**prompts, **self.size, "num_inference_steps": steps}


class StableDiffusionXL(UNetText[StableDiffusionXLPipeline]):
    """Two text encoders, and the picture's size as a condition: Stable Diffusion XL."""

    pipeline_class = StableDiffusionXLPipeline

    @torch.inference_mode()
    def encode(self, conditions: Sequence[str]) -> dict[str, Tensor]:
        """`prompt` [n, tokens, width], `pooled` [n, width] and `size` [n, 6]: original, crop and target.

        Where the pipeline says so, as Stability's does, the empty prompt is all zeros.
        """
        device = self.pipeline.device
        texts = cast(str, list(conditions))  # it takes lists, whatever its annotation says
        prompt, _, pooled, _ = self.pipeline.encode_prompt(texts, device=device, do_classifier_free_guidance=False)
        if self.pipeline.config["force_zeros_for_empty_prompt"]:
            says = torch.tensor([bool(text) for text in conditions], device=device)
            prompt, pooled = prompt * says[:, None, None], pooled * says[:, None]
        side = self.image_size
        size = torch.tensor([[side, side, 0, 0, side, side]], dtype=pooled.dtype)
        return {"prompt": prompt, "pooled": pooled, "size": size.to(device).expand(len(conditions), -1)}

    def call(self, conditions: Sequence[str], negative: str, steps: int) -> Mapping[str, object]:
        """Embeddings: the pipeline itself would not make the empty prompt zeros but where it is the negative one."""
        positive, uncond = self.encode(conditions), self.encode([negative] * len(conditions))
        names = {"prompt": "prompt_embeds", "pooled": "pooled_prompt_embeds"}
        told = {argument: positive[name] for name, argument in names.items()}
        negatives = {f"negative_{argument}": uncond[name] for name, argument in names.items()}
        return {**told, **negatives, **self.size, "num_inference_steps": steps}


class ClassConditional(Family[ClassConditionalPipeline]):
    """Pixels by class, on a UNet2DConditionModel without attention to text. A condition is a class's number."""

    pipeline_class = ClassConditionalPipeline
    task = "unconditional-image-generation"

    def __init__(self, pipeline: ClassConditionalPipeline, resolution: int = 0) -> None:
        super().__init__(pipeline, resolution)
        if resolution not in (0, self.image_size):
            raise BadInput(f"teacher.resolution: this teacher paints {self.image_size} pixels; leave resolution out")

    @property
    def network(self) -> UNetNetwork:
        """The UNet."""
        return UNetNetwork(self.pipeline.unet)

    @property
    def latent_shape(self) -> tuple[int, ...]:
        """[channels, height, width] of the picture itself."""
        config = self.pipeline.unet.config
        return (config.in_channels, config.sample_size, config.sample_size)

    @property
    def has_null(self) -> bool:
        """As the pipeline's index says."""
        return self.pipeline.has_null_class

    def encode(self, conditions: Sequence[str]) -> dict[str, Tensor]:
        """Classes as `class` [n, classes], one-hot; the last class is the null condition, zeros where there is none."""
        labels = torch.tensor([self._label(condition) for condition in conditions], device=self.pipeline.device)
        known = nn.functional.one_hot(labels, self.pipeline.null_class + 1)
        return {"class": known[:, : self.pipeline.unet.config.num_class_embeds].float()}

    def decode(self, latents: Tensor) -> Tensor:
        """Pixels are what they are; grey ones are shown in three channels."""
        return latents.float().expand(-1, 3, -1, -1)

    def latents(self, images: Tensor, noise: Tensor) -> Tensor:
        """Pixels are what they are; a grey teacher sees their brightness."""
        return images if self.latent_shape[0] == images.shape[1] else images.mean(1, keepdim=True)

    def call(self, conditions: Sequence[str], negative: str, steps: int) -> Mapping[str, object]:
        """Class labels. Raises BadInput for a negative prompt."""
        if negative:
            raise BadInput(f"trajectories.negative_prompt: {negative!r} means nothing to a class-conditional teacher")
        return {"class_labels": [self._label(condition) for condition in conditions], "num_inference_steps": steps}

    def save_lora(self, folder: Path) -> None:
        """For the UNet's `load_lora_adapter`; the pipeline has no loader of its own."""
        self.pipeline.unet.save_lora_adapter(folder, adapter_name=ADAPTER)

    @staticmethod
    def usage(place: str, condition: str, steps: int) -> tuple[dict[str, object], str]:
        """The folder brings its own pipeline."""
        return {"custom_pipeline": place, "trust_remote_code": True}, f"{[condition]!r}, num_inference_steps={steps}"

    def _label(self, condition: str) -> int:
        if not condition:
            return self.pipeline.null_class
        if condition.isdigit() and int(condition) < self.pipeline.null_class:
            return int(condition)
        raise BadInput(f"prompts: {condition!r} is no class; write a number from 0 to {self.pipeline.null_class - 1}")


_ALL = (StableDiffusion, StableDiffusionXL, StableDiffusion3, Flux, ClassConditional)
FAMILIES: dict[str, type[Family]] = {family.pipeline_class.__name__: family for family in _ALL}


def family_of(place: str, revision: str = "") -> type[Family]:
    """The family of a pipeline's folder or hub id. Raises BadInput for one that fewstep does not distill.

    A folder that brings code of its own is told by the name of its class; that code is never run.
    """
    options: dict = {"revision": revision} if revision else {}
    named = cast(dict, DiffusionPipeline.load_config(place, **options))["_class_name"]
    name = named if isinstance(named, str) else named[-1]
    if name not in FAMILIES:
        known = ", ".join(FAMILIES)
        raise BadInput(f"teacher: {place} is a {name}{nearest(name, FAMILIES)}; fewstep distills {known}")
    return FAMILIES[name]


def load(spec: TeacherSpec, device: str | torch.device = "cpu") -> Family:
    """A pipeline on a device. Raises BadInput where there is none of a known family."""
    place, arguments = spec.folder or spec.hub, cast(dict, {"revision": spec.revision} if spec.revision else {})
    try:
        family = family_of(place, spec.revision)
        if brings_scheduler := (Path(place) / "scheduler" / "overshooting.py").exists():
            arguments["scheduler"] = None
        pipeline = family.pipeline_class.from_pretrained(place, torch_dtype=DTYPES[spec.dtype], **arguments)
        if brings_scheduler:  # an exported student's; the code is the one here, no folder's is run
            pipeline.register_modules(scheduler=OvershootingScheduler.from_pretrained(place, subfolder="scheduler"))
    except (OSError, ValueError) as error:
        raise BadInput(f"teacher: {place} cannot be loaded as a diffusers pipeline: {error}") from error
    pipeline.set_progress_bar_config(disable=True)
    return family(pipeline.to(device), spec.resolution)
