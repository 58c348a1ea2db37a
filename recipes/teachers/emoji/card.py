"""Draw the pictures of the teacher's card: what it makes, and the nearest training pictures beside samples.

python recipes/teachers/emoji/card.py
"""

from __future__ import annotations

from pathlib import Path

import torch
from data import load, samples
from diffusers import StableDiffusionPipeline
from PIL import Image, ImageDraw
from torch import Tensor

HERE = Path(__file__).parent
SCALE = 3  # of a pixel
STEPS, GUIDANCE = 50, 3.0
PROMPTS = (
    "red apple", "dog face", "racing car on white", "rocket", "pizza", "guitar",
    "cat face on pink", "tiger on green", "fish on blue", "octopus on purple", "bird", "mammal on yellow",
    "strawberry on white", "hamburger", "birthday cake", "ice cream on blue", "fruit food on gray", "food or drink",
    "sailboat on blue", "airplane", "fire engine", "house building on green", "ground transport", "place or vehicle",
    "smiling face with sunglasses", "skull on gray", "red heart", "large snowman on blue", "concerned face", "emotion",
    "soccer ball on green", "small crown at the top on red", "alarm clock", "light bulb on purple", "tool", "object",
)  # fmt: skip


def sample(pipeline: StableDiffusionPipeline, prompts: list[str]) -> Tensor:
    """One picture per prompt, [n, 3, 32, 32] in 0..1, seeds 0, 1, 2, ..."""
    generators = [torch.Generator().manual_seed(seed) for seed in range(len(prompts))]
    images = pipeline(
        prompts, num_inference_steps=STEPS, guidance_scale=GUIDANCE, generator=generators, output_type="pt"
    ).images
    return images.float()


def sheet(rows: list[list[Tensor]], titles: list[list[str]]) -> Image.Image:
    """Pictures in a grid, each with a line of text under it."""
    size, line = rows[0][0].shape[-1] * SCALE, 12
    whole = Image.new("RGB", (len(rows[0]) * (size + 8), len(rows) * (size + line + 8)), "white")
    pen = ImageDraw.Draw(whole)
    for y, row in enumerate(rows):
        for x, picture in enumerate(row):
            pixels = picture.permute(1, 2, 0).mul(255).round().byte().numpy()
            place = (x * (size + 8) + 4, y * (size + line + 8) + 4)
            whole.paste(Image.fromarray(pixels).resize((size, size), Image.Resampling.NEAREST), place)
            pen.text((place[0], place[1] + size), titles[y][x][: size // 5], fill="black", font_size=9)
    return whole


def main() -> None:
    """Write samples.png and nearest.png."""
    pipeline = StableDiffusionPipeline.from_pretrained(HERE, torch_dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    made = sample(pipeline, list(PROMPTS))
    six = range(0, len(PROMPTS), 6)
    sheet([list(made[i : i + 6]) for i in six], [list(PROMPTS[i : i + 6]) for i in six]).save(HERE / "samples.png")

    pictures, emoji = load()
    seen, captions, _ = samples(pictures, emoji, 20_520, seed=0)
    seen = (seen + 1) / 2
    chosen = list(range(0, len(PROMPTS), 3))
    nearest = torch.cdist(made[chosen].flatten(1), seen.flatten(1)).topk(5, largest=False).indices
    rows = [[made[i], *seen[near]] for i, near in zip(chosen, nearest, strict=True)]
    titles = [[PROMPTS[i], *(captions[n] for n in near)] for i, near in zip(chosen, nearest.tolist(), strict=True)]
    sheet(rows, titles).save(HERE / "nearest.png")


if __name__ == "__main__":
    main()
