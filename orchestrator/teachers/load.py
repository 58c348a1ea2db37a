"""The kinds of diffusers pipelines that can be distilled, behind one face."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TypeVar, cast

import diffusers
import torch
from diffusers import DiffusionPipeline, StableDiffusionPipeline, StableDiffusionXLPipeline
from torch import Tensor, nn

from orchestrator.class_families import ClassConditional, DiT, Unconditional
from orchestrator.downloads import use_fast_downloads
from orchestrator.errors import BadInput, nearest
from orchestrator.family import Family, LatentFamily, decoded, encoded
from orchestrator.flow_families import Flux, StableDiffusion3
from orchestrator.own_family import Own, made_by
from orchestrator.pipelines.overshooting import OvershootingScheduler
from orchestrator.pipelines.own import OwnNetwork
from orchestrator.pixart_families import PixArtAlpha, PixArtSigma
from orchestrator.recipe import TeacherSpec
from orchestrator.unet import UNetNetwork

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
TextPipeline = TypeVar("TextPipeline", StableDiffusionPipeline, StableDiffusionXLPipeline)


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
        return decoded(self.pipeline.vae, latents)

    def latents(self, images: Tensor, noise: Tensor) -> Tensor:
        """Drawn from what the autoencoder believes, as the teacher's own training data was."""
        return encoded(self.pipeline.vae, images, noise)


class StableDiffusion(UNetText[StableDiffusionPipeline]):
    """One text encoder: Stable Diffusion 1 and 2."""

    pipeline_class = StableDiffusionPipeline

    @torch.inference_mode()
    def encode(self, conditions: Sequence[str]) -> dict[str, Tensor]:
        """Prompts as `prompt` [n, tokens, width]."""
        prompt, _ = self.pipeline.encode_prompt(list(conditions), self.pipeline.device, 1, False)
        return {"prompt": prompt}

    def call(self, conditions: Sequence[str], negative: str, steps: int, guidance_scale: float) -> Mapping[str, object]:
        """Prompts and negative prompts."""
        negatives = [negative] * len(conditions)
        prompts = {"prompt": list(conditions), "negative_prompt": negatives}
        return {**prompts, **self.size, "num_inference_steps": steps, "guidance_scale": guidance_scale}


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
        size = self.told_size(self.latent_shape)["size"]
        return {"prompt": prompt, "pooled": pooled, "size": size.expand(len(conditions), -1)}

    def told_size(self, latent_shape: Sequence[int]) -> dict[str, Tensor]:
        """`size` [1, 6]: that it had originally, nothing cropped, and that it is to have."""
        height, width = self.pixels(latent_shape)
        told = [[height, width, 0, 0, height, width]]
        return {"size": torch.tensor(told, dtype=self.pipeline.text_encoder_2.dtype, device=self.pipeline.device)}

    def call(self, conditions: Sequence[str], negative: str, steps: int, guidance_scale: float) -> Mapping[str, object]:
        """Embeddings: the pipeline itself would not make the empty prompt zeros but where it is the negative one."""
        positive, uncond = self.encode(conditions), self.encode([negative] * len(conditions))
        names = {"prompt": "prompt_embeds", "pooled": "pooled_prompt_embeds"}
        told = {argument: positive[name] for name, argument in names.items()}
        negatives = {f"negative_{argument}": uncond[name] for name, argument in names.items()}
        steered = {"num_inference_steps": steps, "guidance_scale": guidance_scale}
        return {**told, **negatives, **self.size, **steered}


_TEXT = (StableDiffusion, StableDiffusionXL, StableDiffusion3, Flux, PixArtAlpha, PixArtSigma)
_ALL = (*_TEXT, ClassConditional, DiT, Unconditional, Own)
FAMILIES: dict[str, type[Family]] = {family.pipeline_class.__name__: family for family in _ALL}
FAMILIES["DDIMPipeline"] = Unconditional  # loaded as a DDPMPipeline, which keeps the scheduler that it is given


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
    if spec.factory:
        own = made_by(spec.factory)
        nn.Module.to(own.network, device, DTYPES[spec.dtype])
        return Own(own, spec.sizes)
    place, arguments = spec.place, cast(dict, {"revision": spec.revision} if spec.revision else {})
    use_fast_downloads()
    try:
        family = family_of(place, spec.revision)
        if brings_scheduler := (Path(place) / "scheduler" / "overshooting.py").exists():
            arguments["scheduler"] = None
        if brings_network := (Path(place) / "network" / "own.py").exists():
            arguments["network"] = None
        pipeline = family.pipeline_class.from_pretrained(place, torch_dtype=DTYPES[spec.dtype], **arguments)
        if brings_scheduler:  # an exported student's; the code is the one here, no folder's is run
            pipeline.register_modules(scheduler=OvershootingScheduler.from_pretrained(place, subfolder="scheduler"))
        if brings_network:
            network = OwnNetwork.from_pretrained(place, subfolder="network", torch_dtype=DTYPES[spec.dtype])
            pipeline.register_modules(network=network)
    except (OSError, ValueError) as error:
        raise BadInput(f"teacher: {place} cannot be loaded as a diffusers pipeline: {error}") from error
    pipeline.set_progress_bar_config(disable=True)
    return family(pipeline.to(device), spec.sizes)


def load_student(teacher: TeacherSpec, folder: Path, device: str | torch.device = "cpu") -> Family:
    """An exported student: a pipeline of its own, or its adapters and its scheduler in the teacher's."""
    if holds_pipeline(folder):
        return load(teacher.at(folder), device)
    family = load(teacher, device)
    family.pipeline.load_lora_weights(str(folder / "lora"))
    name = json.loads((folder / "scheduler" / "scheduler_config.json").read_text())["_class_name"]
    family.pipeline.register_modules(scheduler=getattr(diffusers, name).from_pretrained(folder / "scheduler"))
    return family


def holds_pipeline(student: Path) -> bool:
    """Whether an exported folder does; else it holds adapters alone, in `lora`, with their scheduler."""
    return (student / DiffusionPipeline.config_name).is_file()
