"""Puts pictures together into one: a grid with a system per row, and contact sheets."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

Pixels = NDArray[np.uint8]  # [n, height, width, 3]
TILE_PX = 96  # at least, where pictures can be enlarged by a whole factor
GAP_PX = 6
INK, PAPER, FAINT = (28, 32, 40), (255, 255, 255), (110, 118, 130)


def grid(rows: Sequence[tuple[str, Pixels]], captions: Sequence[str], file: Path) -> None:
    """Rows of pictures, named at their left; `captions` stand above the columns, where these have any."""
    tall, wide = _tile(rows[0][1])
    font = ImageFont.load_default(14)
    small = ImageFont.load_default(12)
    lines = [textwrap.wrap(caption or "(empty prompt)", max(8, wide // 7))[:3] for caption in captions]
    left = int(max(font.getlength(label) for label, _ in rows)) + 3 * GAP_PX
    top = 15 * max((len(words) for words in lines), default=0) + 2 * GAP_PX
    across, down, columns = wide + GAP_PX, tall + GAP_PX, len(rows[0][1])
    sheet = Image.new("RGB", (left + across * columns + GAP_PX, top + down * len(rows) + GAP_PX), PAPER)
    pen = ImageDraw.Draw(sheet)
    for column, words in enumerate(lines):
        x = left + column * across + wide / 2
        pen.multiline_text((x, top - GAP_PX), "\n".join(words), FAINT, small, anchor="md", align="center", spacing=2)
    for row, (label, pictures) in enumerate(rows):
        y = top + row * down
        pen.text((left - 2 * GAP_PX, y + tall / 2), label, INK, font, anchor="rm")
        for column in range(columns):
            sheet.paste(_enlarged(pictures[column], tall, wide), (left + column * across, y))
    _save(sheet, file)


def contact_sheet(pictures: Pixels, columns: int, file: Path) -> None:
    """Write pictures in reading order to a PNG file."""
    _save(sheet_of(pictures, columns), file)


def sheet_of(pictures: Pixels, columns: int) -> Image.Image:
    """Pictures in reading order, as an image that is not yet in a file."""
    tall, wide = _tile(pictures)
    across, down = wide + GAP_PX, tall + GAP_PX
    rows = -(-len(pictures) // columns)
    sheet = Image.new("RGB", (columns * across + GAP_PX, rows * down + GAP_PX), PAPER)
    for number, picture in enumerate(pictures):
        row, column = divmod(number, columns)
        sheet.paste(_enlarged(picture, tall, wide), (GAP_PX + column * across, GAP_PX + row * down))
    return sheet


def _tile(pictures: Pixels) -> tuple[int, int]:
    """Height and width of a picture after enlargement."""
    _, height, width, _ = pictures.shape
    times = max(1, TILE_PX // max(height, width))
    return height * times, width * times


def _enlarged(picture: Pixels, tall: int, wide: int) -> Image.Image:
    return Image.fromarray(picture).resize((wide, tall), Image.Resampling.NEAREST)


def _save(sheet: Image.Image, file: Path) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    fresh = file.with_name(f".{file.name}")
    sheet.save(fresh, format="PNG", optimize=True)
    fresh.replace(file)
