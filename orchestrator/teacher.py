"""The teacher: a diffusers pipeline, seen as a denoiser, a text encoder and a decoder."""

from __future__ import annotations

import copy
import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import torch
from diffusers import DDIMScheduler, DiffusionPipeline, StableDiffusionPipeline, UNet2DConditionModel
from diffusers.models.embeddings import get_timestep_embedding
from peft import LoraConfig
from torch import Tensor, nn

from methods.diffusion import Cond, Denoiser, DiscreteVP, Prediction, RectifiedFlow, Schedule
from orchestrator.errors import BadInput
from orchestrator.recipe import Json, TeacherSpec

ADAPTER = "student"  # peft's name for the low-rank weights
# What LCM-LoRA adapts: attention, feed-forward, convolutions of the residual blocks, and the time's projections.
LORA_TARGETS = ("to_q", "to_k", "to_v", "to_out.0", "proj_in", "proj_out", "ff.net.0.proj", "ff.net.2")
LORA_TARGETS += ("conv1", "conv2", "conv_shortcut", "downsamplers.0.conv", "upsamplers.0.conv", "time_emb_proj")
GUIDANCE_EMBEDDING = 256  # of the guidance scale as an input, as LCM's authors have it


class UNetNetwork(nn.Module):
    """A text-conditioned diffusers UNet as net(x_t, time, cond).

    `cond` holds "prompt" [b, tokens, width] and, for a network with a guidance input, "guidance_scale" [b].
    """

    def __init__(self, unet: UNet2DConditionModel) -> None:
        super().__init__()
        self.unet = unet

    def forward(self, x_t: Tensor, time: Tensor, cond: Cond) -> Tensor:
        """The raw output of the UNet, in its own dtype."""
        embedded = None
        if "guidance_scale" in cond:
            # diffusers' pipelines call guidance_scale - 1 "w" and show the network 1000 w (arXiv:2310.04378, 4.1).
            w = (cond["guidance_scale"] - 1) * 1000
            embedded = get_timestep_embedding(w, GUIDANCE_EMBEDDING, downscale_freq_shift=1).to(self.unet.dtype)
        prompt = cond["prompt"].to(self.unet.dtype)
        return self.unet(x_t.to(self.unet.dtype), time, prompt, timestep_cond=embedded).sample

    def copy(self) -> UNetNetwork:
        """Another of its kind with the same weights."""
        return copy.deepcopy(self)

    def with_lora(self, rank: int, targets: Sequence[str], *, shares_base: bool) -> UNetNetwork:
        """A copy whose trained weights are low-rank adapters that start at zero.

        The rest may be this network's own weights, not copies. Raises BadInput where no module has such a name.
        """
        shared = {id(weight): weight for weight in self.parameters()} if shares_base else {}
        network = copy.deepcopy(self, shared)
        network.requires_grad_(False)
        names = list(targets or LORA_TARGETS)
        try:
            network.unet.add_adapter(LoraConfig(r=rank, lora_alpha=rank, target_modules=names), ADAPTER)
        except ValueError as error:
            modules = (name.rpartition(".")[2] for name, _ in self.unet.named_modules())
            known = ", ".join(sorted({name for name in modules if name and not name.isdigit()}))
            asked = " or ".join(names)
            raise BadInput(f"method.lora_targets: no module of the teacher is called {asked}, but {known}") from error
        return network

    def with_guidance_input(self) -> UNetNetwork:
        """A copy that also embeds the guidance scale, and answers as this one does until it is trained.

        A network that embeds it already is copied as it is. diffusers initialises the embedding at random;
        zero makes the student the teacher at step 0.
        """
        if self.unet.config["time_cond_proj_dim"]:
            return self.copy()
        # diffusers notes in private keys which values were defaults, and would put those back.
        config = {name: value for name, value in self.unet.config.items() if not name.startswith("_")}
        config["time_cond_proj_dim"] = GUIDANCE_EMBEDDING
        unet = UNet2DConditionModel(**config)
        nn.Module.to(unet, device=self.unet.device, dtype=self.unet.dtype)
        missing, unexpected = unet.load_state_dict(self.unet.state_dict(), strict=False)
        assert not unexpected and missing == ["time_embedding.cond_proj.weight"]
        assert unet.time_embedding.cond_proj is not None
        nn.init.zeros_(unet.time_embedding.cond_proj.weight)
        return UNetNetwork(unet)


@dataclass(frozen=True)
class TeacherCard:
    """What a plan has to know of a teacher; the same folder gives the same card."""

    revision: str  # hash of the pipeline's files, or the hub's commit
    pipeline: str  # diffusers class
    scheduler: Json  # configuration as the loaded pipeline holds it: pipelines rewrite some of it silently
    prediction: Prediction
    latent_shape: tuple[int, ...]

    def dump(self) -> Json:
        """As plain data."""
        return {**vars(self), "latent_shape": list(self.latent_shape)}


class Teacher:
    """A loaded pipeline, frozen, on one device."""

    def __init__(self, spec: TeacherSpec, device: str | torch.device = "cpu") -> None:
        dtype = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}[spec.dtype]
        place = spec.folder or spec.hub
        arguments = {"revision": spec.revision} if spec.revision else {}
        try:
            pipeline = DiffusionPipeline.from_pretrained(place, torch_dtype=dtype, **arguments)
        except (OSError, ValueError) as error:
            raise BadInput(f"teacher: {place} cannot be loaded as a diffusers pipeline: {error}") from error
        if not isinstance(pipeline, StableDiffusionPipeline):
            raise BadInput(f"teacher: {place} is a {type(pipeline).__name__}; fewstep distills StableDiffusionPipeline")
        pipeline.set_progress_bar_config(disable=True)
        self.spec, self.device = spec, torch.device(device)
        self.pipeline = pipeline.to(self.device)
        for part in (pipeline.unet, pipeline.vae, pipeline.text_encoder):
            part.requires_grad_(False).eval()
        self.network = UNetNetwork(pipeline.unet)

    @property
    def card(self) -> TeacherCard:
        """What a plan has to know."""
        unet = self.pipeline.unet.config
        config = {name: value for name, value in self.pipeline.scheduler.config.items() if not name.startswith("_")}
        # -inf, a default of DPM-Solver's, does not survive JSON; from_config puts it back.
        config = {name: value for name, value in config.items() if value not in (math.inf, -math.inf)}
        return TeacherCard(
            revision=self.spec.revision or folder_hash(Path(self.spec.folder)),
            pipeline=type(self.pipeline).__name__,
            scheduler=json.loads(json.dumps(config)),
            prediction=self.prediction,
            latent_shape=(unet.in_channels, unet.sample_size, unet.sample_size),
        )

    @property
    def prediction(self) -> Prediction:
        """What the network's output means; diffusers calls a velocity "flow_prediction"."""
        told = self.pipeline.scheduler.config.prediction_type
        return "flow" if told == "flow_prediction" else told

    @property
    def schedule(self) -> Schedule:
        """The noise levels that the network was trained on."""
        return schedule_of(self.pipeline.scheduler.config)

    def denoiser(self) -> Denoiser:
        """The network with the meaning of its output."""
        return Denoiser(self.network, self.schedule, self.prediction)

    @torch.inference_mode()
    def encode(self, prompts: Sequence[str]) -> dict[str, Tensor]:
        """What the network is conditioned on, one row per prompt."""
        prompt, _ = self.pipeline.encode_prompt(list(prompts), self.device, 1, False)
        return {"prompt": prompt}

    @torch.inference_mode()
    def decode(self, latents: Tensor) -> Tensor:
        """Latents [n, *latent] to images [n, 3, height, width] in 0..1, float32."""
        return decode(self.pipeline, latents)


def decode(pipeline: StableDiffusionPipeline, latents: Tensor) -> Tensor:
    """Latents of a pipeline to images [n, 3, height, width] in 0..1, float32."""
    vae = pipeline.vae
    pixels = vae.decode(latents.to(vae.device, vae.dtype) / vae.config.scaling_factor).sample
    return (pixels.float() / 2 + 0.5).clamp(0, 1)


def schedule_of(config: Mapping[str, object]) -> Schedule:
    """The schedule of a diffusers scheduler's configuration; DDIM holds the table that the others derive from."""
    if config.get("use_flow_sigmas"):
        return RectifiedFlow()
    return DiscreteVP(cast(DDIMScheduler, DDIMScheduler.from_config(dict(config))).alphas_cumprod)


def folder_hash(folder: Path) -> str:
    """Hash of a pipeline's own files: its index and the components that the index names."""
    index = json.loads((folder / "model_index.json").read_text())
    parts = [folder / "model_index.json"]
    for name in sorted(index):
        if (folder / name).is_dir():
            parts += sorted(file for file in (folder / name).rglob("*") if file.is_file())
    whole = hashlib.sha256()
    for file in parts:
        with file.open("rb") as stream:
            whole.update(f"{file.relative_to(folder).as_posix()}\0".encode())
            whole.update(hashlib.file_digest(stream, "sha256").digest())
    return whole.hexdigest()
