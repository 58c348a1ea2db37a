"""One rank of the parity test: trains a round of every method at every ZeRO stage and writes down what came out.

python parity.py RANK WORLD_SIZE PORT FOLDER
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import cast

import torch
from diffusers import UNet2DConditionModel
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

from fewstep.methods import METHODS
from fewstep.methods.adversarial import Adversarial
from fewstep.methods.base import Frozen, Round, Trained
from fewstep.methods.batch import Rows, to_device_async
from fewstep.methods.consistency import Consistency
from fewstep.methods.diffusion import Denoiser
from fewstep.methods.distribution_matching import DistributionMatching
from fewstep.methods.instaflow import InstaFlow
from fewstep.methods.lcm import LCM, LCMLoRA
from fewstep.methods.progressive import Progressive
from fewstep.methods.trajectory_consistency import TrajectoryConsistency
from fewstep.orchestrator.engines.deepspeed import DeepSpeedEngine
from fewstep.orchestrator.engines.engine import EngineSpec
from fewstep.orchestrator.engines.moving_average import Average, frozen_copy
from fewstep.orchestrator.engines.rank import Rank
from fewstep.orchestrator.engines.torch import TorchEngine
from fewstep.orchestrator.families.unet import UNetNetwork
from fewstep.orchestrator.recipe.training import Training
from fewstep.orchestrator.sampling.schedules import schedule_of
from fewstep.orchestrator.students.student import module_of, student_network, trained_of
from fewstep.orchestrator.training.frozen_networks import place_teacher
from fewstep.orchestrator.training.loop import Progress, train
from fewstep.orchestrator.training.round_networks import RoundNetworks, build_networks, full_state
from tests.support import tiny
from tests.support.pair import joined

STEPS = 3
BATCH = 8
STAGES = (0, 1, 2, 3)
DMD2 = {"student_steps": 2, "regression_weight": 0.0, "adversarial_weight": 0.5, "student_every": 2}
CASES: dict[str, Round] = {
    "add": Adversarial(r1_weight=0.1).rounds()[0],
    "consistency": Consistency().rounds()[0],
    "dmd": DistributionMatching().rounds()[0],
    "dmd-lora": DistributionMatching(lora_rank=2).rounds()[0],
    "dmd2": DistributionMatching(**DMD2).rounds()[0],
    "guided": METHODS["guided"]().rounds()[0],
    "instaflow": InstaFlow(perceptual_after=2).rounds()[-1],
    "lcm": LCM(teacher_step="stored", skip=100, grid=10).rounds()[0],
    "lcm-lora": LCMLoRA(lora_rank=2).rounds()[0],
    "progressive": Progressive(teacher_steps=8).rounds()[0],
    "reflow": METHODS["reflow"]().rounds()[0],
    "tcd": TrajectoryConsistency(lora_rank=2).rounds()[0],
}
TINY: dict[str, object] = {  # or ZeRO-3 keeps what is as small whole, and steps all of it at once
    "zero_optimization": {"stage3_param_persistence_threshold": 0, "sub_group_size": 1000}
}
OLD_OFFLOAD = {"cpu_offload": True}
VARIANTS: dict[str, tuple[str, tuple[int, ...], dict[str, object]]] = {  # cases, the stages that they run at, and how
    "accumulation": ("lcm", STAGES, {"accumulation": 2}),
    "clipping": ("lcm", STAGES, {"max_grad_norm": 0.01}),
    "recomputing": ("lcm", (1, 3), {"gradient_checkpointing": True}),
    "optimizer on the host": ("lcm", (1, 2), {"offload": "optimizer"}),
    "all on the host": ("lcm", (3,), {"offload": "all"}),
    "bfloat16": ("lcm", (2, 3), {"precision": "bfloat16"}),
    "bfloat16, gradients in float32": (
        "lcm",
        (1, 2),
        {"precision": "bfloat16", "deepspeed": {"data_types": {"grad_accum_dtype": "fp32"}}},
    ),
    "small weights whole": ("lcm", (3,), {"deepspeed": {}}),
    "optimizer on the host, DeepSpeed's old word": ("lcm", (2,), {"deepspeed": {"zero_optimization": OLD_OFFLOAD}}),
    "teacher in parts": ("dmd", (2,), {"placement": "shard", "deepspeed": TINY}),
    "teacher on the host": ("dmd", (2,), {"placement": "offload"}),
}
ADAPTERS = ("dmd-lora", "lcm-lora", "tcd")  # which ZeRO-3 is refused for
SEVERAL = tuple(name for name, round in CASES.items() if len(round.updates) > 1)


class Decoder(nn.Module):
    """Latents to small pictures."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.ConvTranspose2d(tiny.LATENT[0], 3, 2, 2)

    def forward(self, latents: Tensor) -> Tensor:
        return self.layer(latents)


class Features(nn.Module):
    """Pictures to maps of two layers."""

    channels = (4, 8)
    cond_width = tiny.WIDTH

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = (nn.Conv2d(a, b, 3, 2) for a, b in ((3, 4), (4, 8)))

    def forward(self, images: Tensor) -> list[Tensor]:
        shallow = self.first(images).tanh()
        return [shallow, self.second(shallow)]


class Perceptual(nn.Module):
    """How far apart the maps of two pictures are."""

    def __init__(self) -> None:
        super().__init__()
        self.features = Features()

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        layers = zip(self.features(a), self.features(b), strict=True)
        return torch.stack([F.mse_loss(x, y, reduction="none").mean((1, 2, 3)) for x, y in layers]).sum(0)


def built_alone(round: Round, base: Denoiser) -> RoundNetworks:
    """The networks of a first round in one process, without DeepSpeed."""
    student, training = student_network(module_of(base), trained_of(round, round.result)), settings(0)
    return build_networks(round, base, base, student, lambda net: EngineSpec.of(training, net, 1), TorchEngine, frozen)


def is_possible(case: str, stage: int) -> bool:
    """Is this case trained at this stage?"""
    return stage < 3 or case not in ADAPTERS


def frozen(net: Frozen) -> nn.Module:
    """The network for a role, the same on every rank."""
    torch.manual_seed(1)
    return {"decoder": Decoder, "features": Features, "perceptual": Perceptual}[net.role]()


def settings(stage: int, **others: object) -> Training:
    """Of every case, at a stage; `others` are laid over them."""
    told: dict[str, object] = {
        "steps": STEPS,
        "batch_size": BATCH,
        "learning_rate": 1e-3,
        "zero_stage": stage,
        "warmup_steps": 1,
        "deepspeed": TINY if stage == 3 else {},
    }
    return Training.model_validate({**told, **others})


def teacher() -> Denoiser:
    """A UNet of one level with cross attention in the middle: ZeRO-3 takes its time over every module."""
    torch.manual_seed(0)
    unet = UNet2DConditionModel(
        sample_size=tiny.LATENT[1],
        in_channels=tiny.LATENT[0],
        out_channels=tiny.LATENT[0],
        down_block_types=("DownBlock2D",),
        up_block_types=("UpBlock2D",),
        block_out_channels=(8,),
        layers_per_block=1,
        cross_attention_dim=tiny.WIDTH,
        attention_head_dim=2,
        norm_num_groups=4,
    )
    network = UNetNetwork(unet).requires_grad_(False).eval()
    return Denoiser(network, schedule_of(tiny.scheduler().config), "v_prediction")


def global_batch(step: int) -> dict[str, Tensor]:
    """Stored rows with the columns of every source: a straight path of 11 points per sample."""
    generator = torch.Generator().manual_seed(step)
    noise, x0 = (torch.randn(BATCH, *tiny.LATENT, generator=generator) for _ in range(2))
    u = torch.linspace(1, 0, 11).view(1, 11, 1, 1, 1)
    return {
        "path": u * noise[:, None] + (1 - u) * x0[:, None],
        "times": torch.linspace(999, -1, 11).expand(BATCH, -1),
        "noise": noise,
        "x0": x0,
        "blank": torch.zeros_like(x0),
        "guidance_scale": torch.linspace(1, 4, BATCH),
        "prompt": torch.randn(BATCH, tiny.WORDS, tiny.WIDTH, generator=generator),
        "sample_id": torch.arange(BATCH) + step * BATCH,
    }


def batches(place: Rank):  # noqa: ANN201 - a source of rows
    """This rank's rows of each global batch."""

    def stream(start: int):
        for step in range(start, STEPS):
            rows = place.rows(BATCH)
            mine = {name: value[rows.start : rows.stop] for name, value in global_batch(step).items()}
            mine |= {name: to_device_async(value, place.device) for name, value in mine.items() if name != "sample_id"}
            prompt = mine.pop("prompt")
            yield Rows(mine, {"prompt": prompt}, {"prompt": torch.zeros_like(prompt)})

    return stream


def networks(case: str, training: Training, place: Rank, engine: type) -> RoundNetworks:
    """The round's networks on this rank."""
    of, round = teacher(), CASES[case]
    network = cast(nn.Module, of.net).to(place.device)
    spec = trained_of(round, round.result)
    torch.manual_seed(2)  # of adapters and heads, which start at random
    return build_networks(
        round,
        of,
        of,
        student_network(network, spec),
        lambda net: EngineSpec.of(training, net, place.world_size),
        lambda module, spec: engine(module.to(place.device), spec),
        lambda net: frozen(net).to(place.device),
        lambda teacher: place_teacher(teacher, training, "float32", place.device),
    )


def states(built: RoundNetworks, names: Sequence[str]) -> dict[str, Tensor]:
    """Whole weights by network and name; every rank calls it."""
    return {f"{name}/{key}": value for name in names for key, value in full_state(built, name).items()}


def networks_of(weights: dict[str, Tensor]) -> set[str]:
    """Those whose weights these are."""
    return {name.partition("/")[0] for name in weights}


def distance(a: dict[str, Tensor], b: dict[str, Tensor], network: str) -> float:
    """Between the weights of one network, as one vector."""
    return torch.cat([(a[name] - b[name]).flatten() for name in a if name.startswith(f"{network}/")]).norm().item()


def start(case: str) -> dict[str, Tensor]:
    """The weights before training."""
    built = networks(case, settings(0), Rank(0, 1, torch.device("cpu")), TorchEngine)
    return states(built, (*built.engines, *built.averages))


def run(case: str, training: Training, place: Rank, engine: type) -> tuple[list[dict[str, float]], dict[str, Tensor]]:
    """Losses and gradient norms of every step, and the final weights of all that is trained or averaged."""
    log: list[dict[str, float]] = []
    round, built = CASES[case], networks(case, training, place, engine)

    def after(step: int, progress: Progress) -> bool:
        values = progress.report(place, BATCH)
        losses = {name: value for name, value in values.items() if name.startswith("loss/")}
        log.append(losses | {f"norm/{name}": trained.grad_norm() for name, trained in built.engines.items()})
        return False

    train(round, built, dict.fromkeys(round.sources, batches(place)), training, place, steps=STEPS, after=after)
    return log, states(built, (*built.engines, *built.averages))


def routes(case: str, training: Training, place: Rank, engine: type) -> dict[str, list[str]]:
    """By the network of each update: the networks whose weights it changed, and those left with a gradient."""
    round, built = CASES[case], networks(case, training, place, engine)
    found: dict[str, list[str]] = {}
    for update in round.updates:
        before = states(built, tuple(built.engines))
        alone = replace(round, updates=(update,))
        train(alone, built, dict.fromkeys(round.sources, batches(place)), training, place, steps=1)
        after = states(built, tuple(built.engines))
        changed = {name.partition("/")[0] for name, value in after.items() if not torch.equal(value, before[name])}
        modules = {name: net.net if isinstance(net, Denoiser) else net for name, net in built.nets.items()}
        graded = {
            name
            for name, module in modules.items()
            if name != update.net and any(weight.grad is not None for weight in cast(nn.Module, module).parameters())
        }
        found[update.net] = [*sorted(changed), *(f"gradient of {name}" for name in sorted(graded))]
    return found


def held(place: Rank) -> dict[str, int]:
    """Numbers that this rank holds: of a teacher in parts, of the optimizer and of averages."""
    case, (stage,), told = VARIANTS["teacher in parts"]
    teacher = networks(case, settings(stage, **told), place, DeepSpeedEngine).nets["teacher"]
    weights = cast(nn.Module, cast(Denoiser, teacher).net).parameters()
    found = {"teacher": sum(weight.ds_tensor.numel() for weight in weights)}  # pyright: ignore[reportAttributeAccessIssue]
    for stage in STAGES:
        training, round = settings(stage), CASES["lcm"]
        built = networks("lcm", training, place, DeepSpeedEngine)
        train(round, built, dict.fromkeys(round.sources, batches(place)), training, place, steps=1)
        found |= {f"{name} at ZeRO-{stage}": sum(v.numel() for v in a.values) for name, a in built.averages.items()}
        optimizer = built.engines["student"]._engine.optimizer  # pyright: ignore[reportAttributeAccessIssue]
        states = (optimizer.optimizer if stage else optimizer).state.values()
        found[f"optimizer at ZeRO-{stage}"] = sum(v.numel() for s in states for v in s.values() if v.ndim)
    return found


def drift(stage: int, place: Rank) -> dict[str, float]:
    """Of an average after a thousand steps of float32 weights under bfloat16: by how much it falls short of float64's.

    And in how many weights the target that losses call is not the average in bfloat16.
    """
    module = student_network(cast(nn.Module, teacher().net), Trained())
    target = frozen_copy(module)
    engine = DeepSpeedEngine(module, EngineSpec.of(settings(stage, precision="bfloat16"), Trained(), place.world_size))
    average, (part,) = Average(engine, 0.999, target), engine.partition.parts()
    start = part.double()
    exact = start.clone()
    for _ in range(1000):
        part += 1e-3
        exact.lerp_(part.double(), 0.001)
        average.update()
    off = ((average.values[0] - exact) / (exact - start)).abs().max().item()
    pairs = zip(target.parameters(), average.whole(), strict=True)
    return {"off": off, "differing": sum(not torch.equal(weight, whole.bfloat16()) for weight, whole in pairs)}


def main(place: Rank, folder: Path) -> None:
    """Train every case at each stage, and let rank 0 write the results."""
    for stage in STAGES:
        cases = {case: (case, settings(stage)) for case in CASES if is_possible(case, stage)}
        cases |= {name: (case, settings(stage, **told)) for name, (case, at, told) in VARIANTS.items() if stage in at}
        for name, (case, training) in cases.items():
            log, weights = run(case, training, place, DeepSpeedEngine)
            if place.index == 0:
                save_file(weights, folder / f"{name}-{stage}.safetensors")
                (folder / f"{name}-{stage}.json").write_text(json.dumps(log))
        for case in (case for case in SEVERAL if is_possible(case, stage)):
            found = routes(case, settings(stage), place, DeepSpeedEngine)
            if place.index == 0:
                (folder / f"{case}-{stage}-routes.json").write_text(json.dumps(found))
    (folder / f"held-{place.index}.json").write_text(json.dumps(held(place)))
    (folder / f"drift-{place.index}.json").write_text(json.dumps({stage: drift(stage, place) for stage in (1, 2)}))


if __name__ == "__main__":
    with joined() as (place, folder):
        main(place, folder)
