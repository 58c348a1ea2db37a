"""Train the embedded class-conditional teacher from nothing.

    python recipes/teachers/fashion/train.py --work outputs/fashion-teacher

About an hour of one core. Interrupt it at will: the same command continues from the last checkpoint
in --work, and every step's randomness is a function of its number alone.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch
from data import CLASSES, DEBIAN, load
from diffusers import DDIMScheduler, UNet2DConditionModel
from torch import Tensor
from torch.nn import functional as F

from fewstep.orchestrator.pipelines.class_conditional import ClassConditionalPipeline
from fewstep.recipes.teachers.training import fit

HERE = Path(__file__).parent
BATCH = 64
NULL = len(CLASSES)  # the class of no class, for guidance
DROPPED = 0.1  # of the labels


def denoiser() -> UNet2DConditionModel:
    """A UNet of three levels, 28x28 to 7x7, convolutions only; thin where a channel costs most."""
    torch.manual_seed(0)
    return UNet2DConditionModel(
        sample_size=28,
        in_channels=1,
        out_channels=1,
        down_block_types=("DownBlock2D",) * 3,
        mid_block_type="UNetMidBlock2D",
        up_block_types=("UpBlock2D",) * 3,
        block_out_channels=(16, 32, 64),
        layers_per_block=1,
        norm_num_groups=8,
        time_embedding_dim=128,
        num_class_embeds=NULL + 1,
    )


def scheduler() -> DDIMScheduler:
    """The cosine noise levels, rescaled so that the last one is pure noise (arXiv:2305.08891)."""
    return DDIMScheduler(
        beta_schedule="squaredcos_cap_v2",
        clip_sample=False,
        set_alpha_to_one=True,
        steps_offset=0,
        prediction_type="v_prediction",
        timestep_spacing="trailing",
        rescale_betas_zero_snr=True,
    )


def main(data: Path, work: Path, steps: Sequence[int]) -> None:
    """Train, and write the pipeline beside this file."""
    work.mkdir(parents=True, exist_ok=True)
    pictures, labels = load(data, "train")
    unet, noises = denoiser(), scheduler()
    alpha, sigma = noises.alphas_cumprod.sqrt(), (1 - noises.alphas_cumprod).sqrt()

    def denoise(step: int, generator: torch.Generator) -> Tensor:
        rows = torch.randint(len(pictures), (BATCH,), generator=generator)
        t = torch.randint(1000, (BATCH,), generator=generator)
        noise = torch.randn(pictures[rows].shape, generator=generator)
        dropped = torch.rand(BATCH, generator=generator) < DROPPED
        a, s = alpha[t].view(-1, 1, 1, 1), sigma[t].view(-1, 1, 1, 1)
        x_t, v = a * pictures[rows] + s * noise, a * noise - s * pictures[rows]
        with torch.autocast("cpu", torch.bfloat16):
            v_hat = unet(x_t, t, None, class_labels=labels[rows].masked_fill(dropped, NULL)).sample
        return F.mse_loss(v_hat.float(), v)

    best = fit("denoiser", unet, denoise, cycles=steps, lr=2e-3, work=work)
    ClassConditionalPipeline(best, noises).to(dtype=torch.float16).save_pretrained(HERE)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=DEBIAN, help="the four .gz files of Fashion-MNIST")
    parser.add_argument("--work", type=Path, default=Path("outputs/fashion-teacher"), help="checkpoints")
    parser.add_argument("--steps", type=int, nargs="+", default=[4000, 6000], help="of each cycle")
    parser.add_argument("--export-only", action="store_true", help="write the pipeline as trained so far")
    args = parser.parse_args()
    main(args.data, args.work, () if args.export_only else args.steps)
