"""What a training step with adapters over a shared base takes, as torch's allocator counts it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import cast

import pytest
import torch
from diffusers import UNet2DConditionModel
from torch import nn
from torch.autograd.graph import saved_tensors_hooks
from torch.profiler import ProfilerActivity, profile

from fewstep.methods.base import Round
from fewstep.methods.diffusion import Denoiser
from fewstep.methods.distribution_matching import DistributionMatching
from fewstep.orchestrator.engines.rank import Rank
from fewstep.orchestrator.families.unet import UNetNetwork
from fewstep.orchestrator.planning.memory import Kept
from fewstep.orchestrator.sampling.schedules import schedule_of
from fewstep.orchestrator.training.loop import train
from fewstep.orchestrator.training.round_networks import RoundNetworks, full_state
from tests.support import parity, tiny

ONE = Rank(0, 1, torch.device("cpu"))
ROUND: Round = DistributionMatching(lora_rank=2, regression_weight=0.0).rounds()[0]


def peak(trace: profile, file: Path) -> int:
    """Bytes that were allocated at once at most while a profile was taken, of all that was then."""
    trace.export_chrome_trace(str(file))
    events = json.loads(file.read_text())["traceEvents"]
    return max(event["args"]["Total Allocated"] for event in events if event["name"] == "[memory]")


def teacher() -> Denoiser:
    """A UNet of fifty megabytes."""
    unet = UNet2DConditionModel(
        sample_size=tiny.LATENT[1],
        in_channels=tiny.LATENT[0],
        out_channels=tiny.LATENT[0],
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        block_out_channels=(96, 256),
        layers_per_block=1,
        cross_attention_dim=tiny.WIDTH,
        attention_head_dim=8,
    )
    return Denoiser(UNetNetwork(unet).requires_grad_(False), schedule_of(tiny.scheduler().config), "v_prediction")


def networks(base: Denoiser) -> RoundNetworks:
    """Teacher, student and fake score."""
    return parity.built_alone(ROUND, base)


def step(built: RoundNetworks) -> None:
    """One of both updates."""
    streams = dict.fromkeys(ROUND.sources, parity.batches(ONE))
    train(ROUND, built, streams, parity.settings(0), ONE, steps=1)


def activations(net: nn.Module) -> int:
    """Bytes that a forward of one network keeps for the way back."""
    rows, kept = next(parity.batches(ONE)(0)), Kept()
    kept.weights = {tensor.untyped_storage()._cdata for tensor in (*net.parameters(), *net.buffers())}
    with saved_tensors_hooks(kept.keep, lambda tensor: tensor):
        net(rows.x0, torch.full((len(rows),), 500.0), rows.cond)
    return kept.bytes


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Several would wait for each other over numbers as few as these."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.usefixtures("one_thread")
def test_three_networks_of_adapters_take_little_more_than_their_one_base(tmp_path: Path) -> None:
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as trace:
        base = teacher()
        built = networks(base)
        step(built)
    whole = sum(weight.nbytes for weight in cast(nn.Module, base.net).parameters())
    adapters = sum(value.nbytes for name in built.engines for value in full_state(built, name).values())
    kept = activations(cast(nn.Module, cast(Denoiser, built.nets["student"]).net))
    # Adapters with their gradients and Adam's two moments are four times themselves.
    rest = peak(trace, tmp_path / "trace.json") - whole - 4 * adapters - kept
    assert whole > 50e6
    assert 0 < rest < 0.15 * whole, f"{rest / whole:.3f}"
