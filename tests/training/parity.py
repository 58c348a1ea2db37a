"""One rank of the parity test: trains a round at every ZeRO stage and writes down what came out.

python parity.py RANK WORLD_SIZE PORT FOLDER
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file

from methods import METHODS
from methods.base import Round, Rows
from methods.diffusion import Denoiser
from orchestrator.engine import DeepSpeedEngine, EngineSpec
from orchestrator.loop import Place, Progress, train
from orchestrator.networks import Networks, build, full_state, student_network, trained_of
from orchestrator.recipe import Training
from orchestrator.teacher import schedule_of
from orchestrator.unet import UNetNetwork
from tests import tiny

STEPS = 4
BATCH = 8
STAGES = (0, 1, 2, 3)
ROUND: Round = METHODS["lcm"](teacher_step="stored", skip=100, grid=10).rounds()[0]


def settings(stage: int, accumulation: int = 1) -> Training:
    """Two micro-batches an update, so that accumulation is part of what is compared."""
    return Training(
        steps=STEPS,
        batch_size=BATCH,
        accumulation=accumulation,
        learning_rate=1e-3,
        zero_stage=stage,  # pyright: ignore[reportArgumentType]
        warmup_steps=1,
        # Otherwise ZeRO-3 keeps weights as small as these whole.
        deepspeed={"zero_optimization": {"stage3_param_persistence_threshold": 0}} if stage == 3 else {},
    )


def teacher() -> Denoiser:
    """The tiny pipeline's network."""
    torch.manual_seed(0)
    network = UNetNetwork(tiny.denoiser()).requires_grad_(False).eval()
    return Denoiser(network, schedule_of(tiny.scheduler().config), "v_prediction")


def global_batch(step: int) -> dict[str, torch.Tensor]:
    """Stored rows: a straight path of 11 points per sample."""
    generator = torch.Generator().manual_seed(step)
    noise, x0 = (torch.randn(BATCH, *tiny.LATENT, generator=generator) for _ in range(2))
    u = torch.linspace(1, 0, 11).view(1, 11, 1, 1, 1)
    return {
        "path": u * noise[:, None] + (1 - u) * x0[:, None],
        "times": torch.linspace(999, -1, 11).expand(BATCH, -1),
        "guidance_scale": torch.linspace(1, 4, BATCH),
        "prompt": torch.randn(BATCH, tiny.WORDS, tiny.WIDTH, generator=generator),
        "sample_id": torch.arange(BATCH) + step * BATCH,
    }


def batches(place: Place):  # noqa: ANN201 - a source of rows
    """This rank's rows of each global batch."""

    def stream(start: int):
        for step in range(start, STEPS):
            rows = place.rows(BATCH)
            mine = {name: value[rows.start : rows.stop] for name, value in global_batch(step).items()}
            prompt = mine.pop("prompt")
            yield Rows(mine, {"prompt": prompt}, {"prompt": torch.zeros_like(prompt)})

    return stream


def start() -> dict[str, torch.Tensor]:
    """The student's weights before training."""
    return student(teacher()).state_dict()


def student(of: Denoiser) -> torch.nn.Module:
    """The student's network at its start."""
    return student_network(of.net, trained_of(ROUND, "student"))  # pyright: ignore[reportArgumentType]


def networks(training: Training, place: Place, engine: type) -> Networks:
    """The round's networks on this rank."""
    of = teacher()
    return build(
        ROUND,
        of,
        of,
        student(of),
        lambda net: EngineSpec.of(training, net, place.world_size),
        engine,
    )


def run(training: Training, place: Place, engine: type) -> tuple[list[dict[str, float]], dict[str, torch.Tensor]]:
    """Losses of every step, and the final weights of the student and its average."""
    log: list[dict[str, float]] = []
    built = networks(training, place, engine)

    def after(step: int, progress: Progress) -> None:
        values = progress.report(place, BATCH)
        log.append({"loss": values["loss/student/consistency"], "grad_norm": built.engines["student"].grad_norm()})

    train(ROUND, built, {"path": batches(place)}, training, place, steps=STEPS, after=after)
    weights = {
        f"{name}/{key}": value for name in ("student", "average") for key, value in full_state(built, name).items()
    }
    return log, weights


def main(rank: int, world_size: int, port: int, folder: Path) -> None:
    """Join the other rank, train at each stage, and let rank 0 write the results."""
    torch.set_num_threads(1)
    os.environ["LOCAL_RANK"] = str(rank)  # as Ray Train sets it
    rendezvous = f"tcp://127.0.0.1:{port}"
    torch.distributed.init_process_group("gloo", init_method=rendezvous, rank=rank, world_size=world_size)
    place = Place(rank, world_size, torch.device("cpu"))
    for stage in STAGES:
        for accumulation in (1, 2):
            log, weights = run(settings(stage, accumulation), place, DeepSpeedEngine)
            if rank == 0:
                save_file(weights, folder / f"{stage}-{accumulation}.safetensors")
                (folder / f"{stage}-{accumulation}.json").write_text(json.dumps(log))
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), Path(sys.argv[4]))
