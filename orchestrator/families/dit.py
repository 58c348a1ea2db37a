"""Wraps DiT, a class-conditional transformer, as a network that students are made of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from diffusers import DiTPipeline, DiTTransformer2DModel
from diffusers.models.embeddings import LabelEmbedding
from torch import Tensor

from fewstep.methods.base import Sampler
from fewstep.methods.diffusion import Cond
from fewstep.orchestrator.families.autoencoder import decode_latents, encode_images
from fewstep.orchestrator.families.class_conditional import ByClass, reason_without_eta
from fewstep.orchestrator.families.network import PipelineNetwork


class DiTNetwork(PipelineNetwork[DiTTransformer2DModel]):
    """DiT as net(x_t, time, cond); `cond` holds "class" [b, classes], one-hot."""

    component = "transformer"
    lora_targets = ("to_q", "to_k", "to_v", "to_out.0", "ff.net.0.proj", "ff.net.2")

    def __init__(self, model: DiTTransformer2DModel) -> None:
        super().__init__(model)
        for module in model.modules():
            if isinstance(module, LabelEmbedding):
                module.dropout_prob = 0.0  # in training it would forget classes by chance; a student must not

    @property
    def cond_shapes(self) -> Mapping[str, tuple[int, ...]]:
        """A class, or none."""
        return {"class": (self.model.config["num_embeds_ada_norm"] + 1,)}

    def forward(self, x_t: Tensor, time: Tensor, cond: Cond) -> Tensor:
        """The noise, in the model's own dtype; a variance that it learned beside it is left out."""
        output = self.model(x_t.to(self.model.dtype), time, cond["class"].argmax(1)).sample
        return output[:, : x_t.shape[1]]


class DiT(ByClass[DiTPipeline]):
    """A transformer in an autoencoder's latents, conditioned on a class of ImageNet."""

    pipeline_class = DiTPipeline

    @property
    def network(self) -> DiTNetwork:
        """The transformer."""
        return DiTNetwork(self.pipeline.transformer)

    @property
    def latent_shape(self) -> tuple[int, ...]:
        """[channels, height, width]."""
        config = self.pipeline.transformer.config
        return (config.in_channels, config.sample_size, config.sample_size)

    def pixels(self, latent_shape: Sequence[int]) -> tuple[int, int]:
        """The autoencoder's enlargement of the latents."""
        scale = 2 ** (len(self.pipeline.vae.config.block_out_channels) - 1)
        _, height, width = latent_shape
        return height * scale, width * scale

    @property
    def has_null(self) -> bool:
        """Its pipeline can guide it: that takes label 1000 for no class, whatever the transformer has."""
        return self.null_class == 1000

    @property
    def num_labels(self) -> int:
        """The classes, and no class."""
        return self.null_class + 1

    @property
    def null_class(self) -> int:
        """The one after all classes."""
        return self.pipeline.transformer.config.num_embeds_ada_norm

    def decode(self, latents: Tensor) -> Tensor:
        """Through the autoencoder."""
        return decode_latents(self.pipeline.vae, latents)

    def latents(self, images: Tensor, noise: Tensor) -> Tensor:
        """Drawn from what the autoencoder believes, as the teacher's own training data was."""
        return encode_images(self.pipeline.vae, images, noise)

    def noise_arguments(
        self, noise: Tensor, starting: Sequence[torch.Generator], stepping: Sequence[torch.Generator]
    ) -> Mapping[str, object]:
        """Its pipeline draws the noise by itself."""
        return {"generator": list(starting)}

    def unsupported_reason(self, sampler: Sampler) -> str:
        """Its pipeline takes no eta."""
        return reason_without_eta(sampler, "DiTPipeline")
