"""An exported student at 4 steps against its teacher at 50, from prompt to picture, in stock diffusers.

    python -m tests.benchmarks.sampling [--images 16] [--repeats 3]

The student is the teacher's network with LCM's input for the guidance scale: its weights do not matter to its speed.
Prints JSON.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch
from diffusers import DiffusionPipeline, LCMScheduler

from tests.benchmarks import TEACHERS
from tests.benchmarks.ratio import Row, paired, show
from tests.benchmarks.work import embedded_teacher

STUDENT_STEPS, TEACHER_STEPS = 4, 50
GUIDANCE = 3.0


def main(images: int, repeats: int) -> Iterator[Row]:
    """Measure."""
    torch.set_num_threads(1)
    prompts = [f"red apple {i}" for i in range(images)]
    with tempfile.TemporaryDirectory() as folder:
        teacher = embedded_teacher()
        pipeline = teacher.pipeline
        pipeline.register_modules(unet=teacher.network.with_guidance_input().model)
        pipeline.scheduler = LCMScheduler.from_config(pipeline.scheduler.config)
        pipeline.save_pretrained(folder)
        student = DiffusionPipeline.from_pretrained(Path(folder))
    whole = DiffusionPipeline.from_pretrained(TEACHERS["emoji"])
    for loaded in (student, whole):
        loaded.set_progress_bar_config(disable=True)

    def at_many() -> None:
        whole(prompts, num_inference_steps=TEACHER_STEPS, guidance_scale=GUIDANCE, output_type="pt")

    def at_few() -> None:
        student(prompts, num_inference_steps=STUDENT_STEPS, guidance_scale=GUIDANCE, output_type="pt")

    at_few()
    yield {"benchmark": "sampling", **paired(at_many, at_few, images, repeats), "guidance_scale": GUIDANCE}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=16)
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()
    show(main(args.images, args.repeats))
