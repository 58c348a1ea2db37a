"""Where an LCM student's four steps go wrong: each alone on noised pictures of the teacher, then one after the other.

python hops.py STUDENT [--samples 1024]     # its exported folder; prints KID to other pictures of the teacher
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fewstep.methods.diffusion import Denoiser, diffuse, step
from fewstep.methods.lcm import consistency_function
from fewstep.orchestrator.evaluation.baselines import kids
from fewstep.orchestrator.evaluation.distances import units_of
from fewstep.orchestrator.features.feature_networks import feature_network
from fewstep.orchestrator.recipe.teacher import TeacherSpec
from fewstep.orchestrator.teachers.teacher import Teacher

TEACHER = Path(__file__).parents[2] / "teachers/emoji"
TIMES = (999.0, 749.0, 499.0, 249.0)  # of four steps
PROMPTS, STEPS = 256, 50


@torch.inference_mode()
def main(folder: str, samples: int) -> None:
    """Measure."""
    teacher = Teacher(TeacherSpec(folder=str(TEACHER)))
    student = Teacher(TeacherSpec(folder=folder))
    network = Denoiser(student.network, teacher.schedule, teacher.prediction)
    lines = (TEACHER / "data/heldout.txt").read_text().split("\n")
    prompts = [line for line in lines if line][:PROMPTS] * (samples // PROMPTS)
    cond, look = teacher.encode(prompts), feature_network("mobilenetv2")
    generator = torch.Generator().manual_seed(0)

    def noise() -> Tensor:
        return torch.randn(len(prompts), *teacher.card.latent_shape, generator=generator)

    def paint() -> Tensor:
        x, times = noise(), [teacher.schedule.at(torch.tensor([1 - i / STEPS])) for i in range(STEPS + 1)]
        for t, s in zip(times, times[1:], strict=False):
            x = step(teacher.schedule, teacher.denoiser()(x, t.expand(len(x)), cond), s.expand(len(x)))
        return x

    def jump(x0: Tensor, time: float) -> Tensor:
        t = torch.full((len(x0),), time)
        return consistency_function(network, diffuse(teacher.schedule, x0, noise(), t), t, cond)

    def features_of(latents: Tensor) -> NDArray[np.floating]:
        return torch.cat([look(teacher.decode(chunk)) for chunk in latents.split(128)]).half().numpy()

    data, reference = paint(), features_of(paint())
    by_hop = {f"from {time:g} alone": features_of(jump(data, time)) for time in TIMES}
    x0 = torch.zeros_like(data)
    for time in TIMES:
        x0 = jump(x0, time)
        by_hop[f"after {time:g}"] = features_of(x0)
    values = kids([reference, *by_hop.values()], units_of(len(prompts), PROMPTS))
    for name, value in zip(by_hop, values, strict=True):
        print(f"{name}: {value:.4f}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("student")
    parser.add_argument("--samples", type=int, default=1024)
    args = parser.parse_args()
    main(args.student, args.samples)
