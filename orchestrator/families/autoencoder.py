"""Encodes and decodes images by an AutoencoderKL, without overflow."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from diffusers import AutoencoderKL
from diffusers.models.autoencoders.vae import DecoderOutput
from diffusers.models.modeling_outputs import AutoencoderKLOutput
from torch import Tensor, nn


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


def decode_latents(vae: AutoencoderKL, latents: Tensor) -> Tensor:
    """Scaled latents to images in -1..1, in float32; gradients pass."""
    with in_range(vae):
        scaled = latents.to(vae.device, vae.dtype) / vae.config["scaling_factor"]
        output = vae.decode(scaled)
        assert isinstance(output, DecoderOutput)
        return output.sample.float()


@torch.inference_mode()
def encode_images(vae: AutoencoderKL, images: Tensor, noise: Tensor) -> Tensor:
    """Images in -1..1 to scaled latents, drawn with `noise` from what the autoencoder believes, in float32."""
    with in_range(vae):
        return sample_latents(vae, images, noise) * vae.config["scaling_factor"]


def sample_latents(vae: AutoencoderKL, images: Tensor, noise: Tensor) -> Tensor:
    """Latents drawn with `noise` from what an autoencoder believes of images; not scaled yet, in float32."""
    output = vae.encode(images.to(vae.device, vae.dtype))
    assert isinstance(output, AutoencoderKLOutput)
    gaussian = output.latent_dist
    return gaussian.mean.float() + gaussian.std.float() * noise.to(vae.device)
