"""Draw the pictures of the teacher's card: what it makes, and the nearest training pictures beside samples.

python recipes/teachers/emoji/card.py
"""

from __future__ import annotations

from pathlib import Path

import torch
from data import load, samples
from diffusers import StableDiffusionPipeline
from torch import Tensor

from fewstep.recipes.teachers.sheet import sheet

HERE = Path(__file__).parent
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
        prompts,
        num_inference_steps=STEPS,
        guidance_scale=GUIDANCE,
        generator=generators,
        output_type="pt",
        return_dict=False,
    )[0]
    if not isinstance(images, Tensor):
        raise TypeError(f"the pipeline answers output_type='pt' with {type(images).__name__}, not with a tensor")
    return images.float()


def main() -> None:
    """Write samples.png and nearest.png."""
    pipeline = StableDiffusionPipeline.from_pretrained(HERE, torch_dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    images = sample(pipeline, list(PROMPTS))
    six = range(0, len(PROMPTS), 6)
    sheet([list(images[i : i + 6]) for i in six], [list(PROMPTS[i : i + 6]) for i in six]).save(HERE / "samples.png")

    pictures, emoji = load()
    seen, captions, _ = samples(pictures, emoji, 20_520, seed=0)
    seen = (seen + 1) / 2
    chosen = list(range(0, len(PROMPTS), 3))
    nearest = torch.cdist(images[chosen].flatten(1), seen.flatten(1)).topk(5, largest=False).indices
    rows = [[images[i], *seen[near]] for i, near in zip(chosen, nearest, strict=True)]
    titles = [[PROMPTS[i], *(captions[n] for n in near)] for i, near in zip(chosen, nearest.tolist(), strict=True)]
    sheet(rows, titles).save(HERE / "nearest.png")


if __name__ == "__main__":
    main()
