"""Measures what eyes see in a picture and features do not: how far it is out of range, its colours and its contrast."""

from __future__ import annotations

import torch
from torch import Tensor

from fewstep.orchestrator.evaluation.results import LOOKS

MARGIN = 0.02  # of the range 0..1, out of which a decoder may well be
LUMA = (0.299, 0.587, 0.114)  # of red, green and blue (ITU-R BT.601)


def appearance(images: Tensor) -> Tensor:
    """LOOKS [n, 4] of images [n, 3, height, width] in 0..1 that nothing has clamped yet, float32.

    `clipped` is the share of values that a screen cannot show; `saturation` the mean distance between a pixel's
    strongest and weakest colour; `contrast` the deviation of luma over the picture and `brightness` its mean.
    """
    clipped = ((images < -MARGIN) | (images > 1 + MARGIN)).float().mean((1, 2, 3))
    shown = images.float().clamp(0, 1)
    saturation = (shown.amax(1) - shown.amin(1)).mean((1, 2))
    luma = torch.einsum("nchw,c->nhw", shown, torch.tensor(LUMA, device=images.device)).flatten(1)
    looks = {"clipped": clipped, "saturation": saturation}
    looks |= {"contrast": luma.std(1, correction=0), "brightness": luma.mean(1)}
    return torch.stack([looks[name] for name in LOOKS], 1)
