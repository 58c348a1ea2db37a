"""A teacher as others make one: 14x14 pictures of clothes without a condition, epsilon, a decode that clamps.

python -m tests.support.pictures WORK    # trains it again, with checkpoints in WORK, and writes its weights here
"""

from __future__ import annotations

import io
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import torch
from diffusers import DDPMScheduler, UNet2DModel
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F

from fewstep.orchestrator.families.custom import OwnModel
from fewstep.recipes.teachers.training import fit
from tests.support.source import ROOT

WEIGHTS = Path(__file__).with_suffix(".safetensors")
SIZE = 14
STEPS, BATCH = 3000, 64


class Clothes(nn.Module):
    """Tells the noise in x_t [b, 1, 14, 14]."""

    def __init__(self) -> None:
        super().__init__()
        self.unet = UNet2DModel(
            sample_size=SIZE,
            in_channels=1,
            out_channels=1,
            layers_per_block=1,
            block_out_channels=(16, 32),
            down_block_types=("DownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "UpBlock2D"),
            norm_num_groups=8,
            add_attention=False,
        )

    def forward(self, x_t: Tensor, time: Tensor, cond: dict[str, Tensor]) -> Tensor:
        return self.unet(x_t, time).sample


def decode(x: Tensor) -> Tensor:
    """As many would write it: grey pictures, clamped to what a file can hold."""
    return x.clamp(-1, 1).expand(-1, 3, -1, -1)


def clothes() -> OwnModel:
    """The teacher, on diffusers' own default noise levels, which leave a trace of the picture at the last."""
    network = Clothes()
    network.load_state_dict({name: tensor.float() for name, tensor in load_file(WEIGHTS).items()})
    return OwnModel(network, DDPMScheduler(), (1, SIZE, SIZE), decode=decode)


def pictures() -> Tensor:
    """Those of the fashion teacher's held-out data [n, 1, 14, 14], in -1..1."""
    rows = pq.read_table(ROOT / "recipes/teachers/fashion/data/heldout.parquet")["image"].to_pylist()
    images = [np.array(Image.open(io.BytesIO(row["bytes"])).convert("L")) for row in rows]
    levels = torch.from_numpy(np.stack(images))[:, None] / 255
    return F.interpolate(levels, size=(SIZE, SIZE), mode="area") * 2 - 1


def main(work: Path) -> None:
    """Train."""
    scheduler, images = DDPMScheduler(), pictures()
    alphas_cumprod = scheduler.alphas_cumprod

    def loss(step: int, generator: torch.Generator) -> Tensor:
        x0 = images[torch.randint(len(images), (BATCH,), generator=generator)]
        t = torch.randint(len(alphas_cumprod), (BATCH,), generator=generator)
        noise, level = torch.randn(x0.shape, generator=generator), alphas_cumprod[t].view(-1, 1, 1, 1)
        return F.mse_loss(network(level.sqrt() * x0 + (1 - level).sqrt() * noise, t, {}), noise)

    torch.manual_seed(0)
    network = Clothes()
    best = fit("clothes", network, loss, cycles=[STEPS], lr=2e-3, work=work)
    save_file({name: tensor.half() for name, tensor in best.state_dict().items()}, WEIGHTS)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
