"""Measure how far two tensors are apart: one number per sample."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fewstep.methods.diffusion import per_sample

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor


def l1(a: Float[Tensor, "b *latent"], b: Float[Tensor, "b *latent"]) -> Float[Tensor, "b"]:
    """The mean of |a - b|."""
    return per_sample((a - b).abs())


def l2(a: Float[Tensor, "b *latent"], b: Float[Tensor, "b *latent"]) -> Float[Tensor, "b"]:
    """The mean of (a - b)^2."""
    return per_sample((a - b) ** 2)


def pseudo_huber(a: Float[Tensor, "b *latent"], b: Float[Tensor, "b *latent"], c: float) -> Float[Tensor, "b"]:
    """The mean of sqrt((a - b)^2 + c^2) - c: quadratic within c, linear beyond.

    Element by element, as latent consistency models are trained; arXiv:2310.14189 (section 3.3) takes the
    root of the whole sample's norm instead.
    """
    return per_sample(((a - b) ** 2 + c**2).sqrt() - c)
