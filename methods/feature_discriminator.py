"""Tell real images from generated ones by what a frozen feature network sees in them.

Sauer et al., "Adversarial Diffusion Distillation", arXiv:2311.17042, section 3.1.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from fewstep.methods.base import Nets, callable_network
from fewstep.methods.batch import Rows
from fewstep.methods.diffusion import Cond
from fewstep.methods.lazy_torch import torch

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor, nn


@runtime_checkable
class FeatureMaps(Protocol):
    """Map images [b, 3, h, w] in -1..1 to one map [b, channels, h, w] per layer, by a frozen network."""

    channels: Sequence[int]
    cond_width: int  # of `pooled` conditions

    def __call__(self, images: Tensor, /) -> list[Tensor]: ...  # noqa: D102 - the class says it


def discriminator_heads(features: nn.Module) -> nn.Module:
    """Build the discriminator on top of a feature network."""
    if not isinstance(features, FeatureMaps):
        raise TypeError(f"a {type(features).__name__} does not say the channels of its maps, and the conditions' width")
    from fewstep.methods.feature_heads import FeatureHeads  # whose classes are torch modules

    return FeatureHeads(features)


def pooled(cond: Cond) -> Float[Tensor, "b width"]:
    """Join what a sample is to show to one vector: a text encoder's own pooled prompt, or the mean over its tokens.

    A mask says which tokens count. Without one all do: CLIP's padding repeats the end of the text, whose state has seen
    all of it. The picture's size is left out: in pixels it would drown the prompt.
    """
    left_out = {"mask", "size", "aspect", *(["prompt"] if "pooled" in cond else [])}
    entries = [cond[name].float() for name in sorted(cond) if name not in left_out]
    return torch.cat([_mean(entry, cond.get("mask")) if entry.ndim > 2 else entry for entry in entries], 1)


def _mean(tokens: Float[Tensor, "b tokens width"], mask: Float[Tensor, "b tokens"] | None) -> Float[Tensor, "b width"]:
    if mask is None:
        return tokens.mean(1)
    weights = mask.float()[..., None]
    return (tokens * weights).sum(1) / weights.sum(1)


def image_features(nets: Nets, x0: Float[Tensor, "b *latent"]) -> list[Tensor]:
    """Map what latents decode to; gradients pass to the latents."""
    return callable_network(nets, "features")(callable_network(nets, "decoder")(x0))


def hinge_loss(nets: Nets, generated: Tensor, real: Rows, r1_weight: float = 0.0) -> Tensor:
    """Equation 3: hinge on real and on generated samples, R1 on the heads' inputs of the real ones.

    R1 is of a head's mean logit over places, where the paper's heads have one logit. Neither side is augmented.
    """
    with torch.no_grad():
        maps, fakes = image_features(nets, real.x0), image_features(nets, generated)
        image = maps[-1].mean((2, 3))
    discriminator, text = callable_network(nets, "discriminator"), pooled(real.cond)
    maps = [layer.requires_grad_(r1_weight > 0) for layer in maps]
    reals = discriminator(maps, text, image)
    losses = [torch.relu(1 - logits).mean() for logits in reals]
    losses += [torch.relu(1 + logits).mean() for logits in discriminator(fakes, text, image)]
    if r1_weight:
        slopes = torch.autograd.grad([logits.mean(1).sum() for logits in reals], maps, create_graph=True)
        losses += [r1_weight * (slope**2).flatten(1).sum(1).mean() for slope in slopes]
    return torch.stack(losses).sum()


def fooling_loss(nets: Nets, generated: Float[Tensor, "b *latent"], real: Rows) -> Tensor:
    """Equation 2: the sum of the heads' mean logits on generated samples, negated."""
    with torch.no_grad():
        image = image_features(nets, real.x0)[-1].mean((2, 3))
    logits = callable_network(nets, "discriminator")(image_features(nets, generated), pooled(real.cond), image)
    return -torch.stack([layer.mean() for layer in logits]).sum()
