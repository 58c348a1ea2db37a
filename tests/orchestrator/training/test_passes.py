"""No method's training step asks more of its denoisers than its papers' does, counted by operations."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from diffusers import UNet2DConditionModel

from fewstep.methods import METHODS
from fewstep.methods.base import Round
from fewstep.methods.batch import Rows
from fewstep.methods.diffusion import Denoiser
from fewstep.orchestrator.engines.rank import Rank
from fewstep.orchestrator.families.unet import UNetNetwork
from fewstep.orchestrator.students.student import module_of
from fewstep.orchestrator.training.loop import train
from tests.support import parity, tiny
from tests.support.passes import EXPECTED, FEWER, count_passes

HERE = Rank(0, 1, torch.device("cpu"))


def small_teacher() -> Denoiser:
    """A UNet of two levels, much of whose work lies behind its middle, as in those of others."""
    unet = UNet2DConditionModel(
        sample_size=tiny.LATENT[1],
        in_channels=tiny.LATENT[0],
        out_channels=tiny.LATENT[0],
        down_block_types=("DownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "UpBlock2D"),
        block_out_channels=(16, 16),
        layers_per_block=1,
        cross_attention_dim=tiny.WIDTH,
        attention_head_dim=2,
        norm_num_groups=4,
    )
    return replace(parity.teacher(), net=UNetNetwork(unet).requires_grad_(False).eval())


def passes(round_: Round, steps: int) -> float:
    """Operations of the denoisers a step, in those of one forward pass."""
    teacher = small_teacher()
    networks, rows = parity.built_alone(round_, teacher), next(parity.batches(HERE)(0))

    def stream(start: int) -> Iterator[Rows]:
        while True:
            yield rows

    def trains() -> None:
        train(round_, networks, dict.fromkeys(round_.sources, stream), parity.settings(0), HERE, steps=steps)

    return count_passes(trains, module_of(teacher), rows) / steps


def test_every_method_is_counted() -> None:
    assert {expected.method for expected in EXPECTED.values()} == set(METHODS)


@pytest.mark.parametrize("name", EXPECTED)
def test_a_step_makes_as_many_passes_as_the_papers(name: str) -> None:
    expected = EXPECTED[name]
    assert 0.5 * expected.passes < passes(expected.round, expected.steps) <= FEWER * expected.passes
