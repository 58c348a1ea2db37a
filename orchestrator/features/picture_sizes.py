"""Brings pictures to the sizes that networks see them at."""

from __future__ import annotations

import math

from torch import Tensor
from torch.nn import functional as F

Size = tuple[int, int]  # height and width
SMALLEST_PX = 64  # shorter side that convolutions see; smaller pictures are enlarged


def size_of(images: Tensor) -> Size:
    """Height and width of images [n, 3, height, width]."""
    return images.shape[-2], images.shape[-1]


def limited(size: Size, smallest: int, largest: float = math.inf) -> Size:
    """The nearest size of the same aspect whose shorter side is within limits."""
    shorter = min(size)
    scale = min(max(shorter, smallest), largest) / shorter
    return round(size[0] * scale), round(size[1] * scale)


def resize(images: Tensor, size: Size, interpolation: str = "bilinear") -> Tensor:
    """Images of a size."""
    if size_of(images) == size:
        return images
    return F.interpolate(images, size=size, mode=interpolation, align_corners=False, antialias=True)


def whole_patches(images: Tensor, patch: int) -> Tensor:
    """The middle of images, as much as patches of so many pixels cover."""
    height, width = (side // patch * patch for side in size_of(images))
    top, left = (images.shape[-2] - height) // 2, (images.shape[-1] - width) // 2
    return images[..., top : top + height, left : left + width]


def in_pixels(size: Size) -> str:
    """A size in words, one number for a square."""
    height, width = size
    return f"{height}" if height == width else f"{height}x{width}"
