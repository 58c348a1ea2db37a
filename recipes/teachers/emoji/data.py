"""The emoji data set: pictures, how they are placed, and what the captions say of it.

A caption names an emoji, its subcategory or its category, and some of the attributes it was drawn
with. What it leaves out stays free, so that one prompt has many right answers.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

SIZE = 32  # pixels
COLUMNS = 38  # emoji per row of the sheet
FOLDER = Path(__file__).parent / "data"
COLOURS = {
    "white": (255, 255, 255),
    "gray": (190, 190, 190),
    "pink": (250, 185, 210),
    "red": (235, 110, 100),
    "yellow": (255, 235, 140),
    "green": (150, 215, 150),
    "blue": (150, 195, 245),
    "purple": (200, 170, 240),
}
LEVELS = {"name": 0.55, "subcategory": 0.2, "category": 0.15, "": 0.1}  # what a caption calls its object
SIZES = {"large": 0.95, "small": 0.6}  # of the picture's width
SHIFT = 4 / SIZE  # a small emoji stands in the middle, or one latent cell off it


@dataclass(frozen=True)
class Emoji:
    """What can be said of one picture."""

    name: str
    subcategory: str
    category: str


@dataclass(frozen=True)
class Placement:
    """One emoji as it is drawn: dx and dy in picture widths, right and down positive."""

    emoji: int
    colour: str
    scale: float
    dx: float
    dy: float
    mirrored: bool


def load() -> tuple[Tensor, list[Emoji]]:
    """Pictures [n, 4, 32, 32] in 0..1 (alpha last, colours not premultiplied) and what they are called."""
    emoji = [Emoji(*row) for row in json.loads((FOLDER / "captions.json").read_text())]
    sheet = Image.open(FOLDER / "emoji.webp").convert("RGBA")
    pixels = torch.frombuffer(bytearray(sheet.tobytes()), dtype=torch.uint8).view(sheet.height, sheet.width, 4)
    tiles = pixels.unflatten(0, (-1, SIZE)).unflatten(2, (-1, SIZE)).permute(0, 2, 4, 1, 3).flatten(0, 1)
    return tiles[: len(emoji)].float() / 255, emoji


def is_held_out(thing: str, colour: str) -> bool:
    """A tenth of the (object, colour) combinations is kept for evaluation: never drawn, never named in training."""
    return hashlib.sha256(f"{thing}|{colour}".encode()).digest()[0] < 26


def choice(options: list[str], generator: torch.Generator, weights: list[float] | None = None) -> str:
    """One of the options, equally likely or by weight."""
    return options[int(torch.multinomial(torch.tensor(weights or [1.0] * len(options)), 1, generator=generator))]


def draw_placement(emoji: list[Emoji], index: int, generator: torch.Generator, colour: str = "") -> Placement:
    """Draw where and how an emoji stands; without a colour, on any that is not held out for it."""
    colour = colour or choice([c for c in COLOURS if not is_held_out(emoji[index].name, c)], generator)
    u = torch.rand(2, generator=generator).tolist()
    is_large = u[0] < 0.6
    dx, dy = (0.0, 0.0) if is_large else (float(n) * SHIFT for n in torch.randint(-1, 2, (2,), generator=generator))
    return Placement(index, colour, SIZES["large" if is_large else "small"], dx, dy, u[1] < 0.5)


def describe(emoji: Emoji, placement: Placement, generator: torch.Generator) -> str:
    """A caption that is true of the picture and tells some of what is in it."""
    level = choice(list(LEVELS), generator, list(LEVELS.values()))
    if not level:
        return ""
    say = (torch.rand(4, generator=generator) < torch.tensor([0.3, 0.3, 0.3, 0.6])).tolist()
    thing = getattr(emoji, level)
    words = [thing]
    if say[0]:
        words.insert(0, "large" if placement.scale == SIZES["large"] else "small")
    if say[1] and placement.mirrored:
        words.append("mirrored")
    sides = {"left": placement.dx < 0, "right": placement.dx > 0, "top": placement.dy < 0, "bottom": placement.dy > 0}
    aside = [side for side, is_there in sides.items() if is_there]
    if say[2] and aside:
        words.append(f"at the {choice(aside, generator)}")
    if say[3] and not is_held_out(thing, placement.colour):
        words.append(f"on {placement.colour}")
    return " ".join(words)


def draw(pictures: Tensor, placements: list[Placement]) -> Tensor:
    """The pictures as placed: [n, 4, 32, 32] and n placements to [n, 3, 32, 32] in -1..1."""
    theta = torch.tensor(
        [
            [[(-1 if p.mirrored else 1) / p.scale, 0, (2 if p.mirrored else -2) * p.dx / p.scale],
             [0, 1 / p.scale, -2 * p.dy / p.scale]]
            for p in placements
        ]
    )  # fmt: skip
    rgba = pictures[[p.emoji for p in placements]]
    premultiplied = torch.cat([rgba[:, :3] * rgba[:, 3:], rgba[:, 3:]], 1)
    grid = F.affine_grid(theta, [len(placements), 4, SIZE * 2, SIZE * 2], align_corners=False)
    moved = F.avg_pool2d(F.grid_sample(premultiplied, grid, mode="bilinear", align_corners=False), 2)
    background = torch.tensor([COLOURS[p.colour] for p in placements]).view(-1, 3, 1, 1) / 255
    return (moved[:, :3] + (1 - moved[:, 3:]) * background) * 2 - 1


def samples(pictures: Tensor, emoji: list[Emoji], count: int, seed: int) -> tuple[Tensor, list[str], Tensor]:
    """`count` training samples: pictures, captions, and which emoji each shows."""
    generator = torch.Generator().manual_seed(seed)
    index = torch.cat([torch.randperm(len(emoji), generator=generator) for _ in range(-(-count // len(emoji)))])[:count]
    placements = [draw_placement(emoji, i, generator) for i in index.tolist()]
    captions = [describe(emoji[p.emoji], p, generator) for p in placements]
    return draw(pictures, placements), captions, index


def held_out_prompts(emoji: list[Emoji]) -> list[str]:
    """Every combination kept from training, as a prompt: names, then subcategories, then categories."""
    things = [dict.fromkeys(getattr(e, level) for e in emoji) for level in LEVELS if level]
    return [f"{thing} on {c}" for level in things for thing in level for c in COLOURS if is_held_out(thing, c)]
