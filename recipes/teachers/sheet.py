"""Lay out the pictures of a teacher's card."""

from __future__ import annotations

from PIL import Image, ImageDraw
from torch import Tensor

SCALE = 3  # of a pixel


def sheet(rows: list[list[Tensor]], titles: list[list[str]]) -> Image.Image:
    """Pictures [3, height, width] in 0..1 in a grid, each with a line of text under it."""
    size, line = rows[0][0].shape[-1] * SCALE, 12
    whole = Image.new("RGB", (len(rows[0]) * (size + 8), len(rows) * (size + line + 8)), "white")
    pen = ImageDraw.Draw(whole)
    for y, row in enumerate(rows):
        for x, picture in enumerate(row):
            pixels = picture.permute(1, 2, 0).mul(255).round().byte().numpy()
            corner = (x * (size + 8) + 4, y * (size + line + 8) + 4)
            whole.paste(Image.fromarray(pixels).resize((size, size), Image.Resampling.NEAREST), corner)
            pen.text((corner[0], corner[1] + size), titles[y][x][: size // 5], fill="black", font_size=9)
    return whole
