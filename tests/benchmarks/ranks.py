"""Two ranks under DeepSpeed, as fewstep trains, against two under torch's DistributedDataParallel.

    python -m tests.benchmarks.ranks [--steps 8] [--rows 128 32] [--repeats 9]

Both train the embedded teacher's network on the same rows, in the same pair of gloo processes and in turns. Bare is
forward, backward, clipping and AdamW with nothing around them. Stage 1 gathers the weights as well, which
DistributedDataParallel alone does not: it is measured against torch's ZeroRedundancyOptimizer too, and what gathering
takes is told beside. How much that weighs is a matter of how often a step uses each weight: a pass through the
embedded teacher's network is 23 floating-point operations to each weight and row, through Stable Diffusion 1.5's 935,
so that 128 rows weigh as three of its images do, and 32 as less than one. Prints JSON.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import socket
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import nn
from torch.distributed.optim import ZeroRedundancyOptimizer
from torch.nn.parallel import DistributedDataParallel

from fewstep.methods.base import Losses, Nets, Round, Source, Trained, Update
from fewstep.methods.batch import Batch, Rows
from fewstep.methods.losses import l2
from fewstep.orchestrator.engines.deepspeed import DeepSpeedEngine
from fewstep.orchestrator.engines.engine import EngineSpec
from fewstep.orchestrator.engines.rank import Rank
from fewstep.orchestrator.recipe.training import Training
from fewstep.orchestrator.students.student import student_network
from fewstep.orchestrator.teachers.teacher import Teacher
from fewstep.orchestrator.training.loop import Progress, train
from fewstep.orchestrator.training.round_networks import build_networks
from tests.benchmarks.ratio import Row, paired, rate, show
from tests.benchmarks.work import Work, embedded_teacher

RANKS = 2
ROWS = (128, 32)  # of a rank; the default batch is 32 to each of two
# What is told of each number of rows: the stage, and torch's twin of it.
PAIRS: dict[str, tuple[int, str]] = {
    "DeepSpeed stage 0, two ranks of {} rows": (0, "replicated"),
    "DeepSpeed stage 1, two ranks of {} rows": (1, "replicated"),
    "DeepSpeed stage 1, two ranks of {} rows, against torch's": (1, "sharded"),
}


def denoising(nets: Nets, batch: Batch) -> Losses:
    """The student's answer to noise against the stored end."""
    student, rows = nets["student"], batch["pairs"]
    return {"x0": l2(student(rows.noise, torch.full((len(rows),), 999.0), rows.cond).x0, rows.x0).mean()}


ROUND = Round("denoising", (Update("student", denoising),), {"student": Trained()}, {"pairs": Source("pairs")})


def rank(
    number: int, port: int, steps: int, sizes: Sequence[int], repeats: int, found: "multiprocessing.Queue[Row]"
) -> None:
    """Measure each pair, with so many rows a rank; rank 0 tells."""
    torch.set_num_threads(1)
    os.environ["LOCAL_RANK"] = str(number)
    torch.distributed.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=number, world_size=RANKS)
    teacher, place = embedded_teacher(), Rank(number, RANKS, torch.device("cpu"))
    facts = collectives(sum(weight.numel() for weight in teacher.network.parameters()), 8)
    for size in sizes:
        rows = Work(teacher, ROUND, size).rows
        bare = {name: torchs(teacher, rows, steps, is_sharded=name == "sharded") for name in ("replicated", "sharded")}
        ours = {stage: deepspeeds(teacher, rows, place, steps, stage) for stage in (0, 1)}
        for act in (*bare.values(), *ours.values()):
            act()
        for name, (stage, twin) in PAIRS.items():
            result = paired(bare[twin], ours[stage], steps, repeats)
            if number == 0:
                found.put({"benchmark": name.format(size), **result, **facts, "batch_size": RANKS * size})
    torch.distributed.barrier()
    found.close()
    found.join_thread()
    os._exit(0)  # DeepSpeed keeps threads of its own past this line


def torchs(teacher: Teacher, rows: Rows, steps: int, *, is_sharded: bool) -> Callable[[], None]:
    """That many steps of DistributedDataParallel, its optimizer whole on every rank or cut up over them."""
    module = student_network(teacher.network, Trained())
    parallel = DistributedDataParallel(module)
    told = {"lr": 1e-4, "weight_decay": 0.0, "fused": True}
    optimizer = (
        ZeroRedundancyOptimizer(module.parameters(), torch.optim.AdamW, **told)
        if is_sharded
        else torch.optim.AdamW(module.parameters(), **told)
    )

    def act() -> None:
        for _ in range(steps):
            answer = parallel(rows.noise, torch.full((len(rows),), 999.0), rows.cond)
            (answer + rows.x0).square().mean().backward()
            nn.utils.clip_grad_norm_(module.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        torch.distributed.barrier()

    return act


def deepspeeds(teacher: Teacher, rows: Rows, place: Rank, steps: int, stage: int) -> Callable[[], None]:
    """That many steps of the loop, with DeepSpeed's engine."""
    training = Training(steps=steps, batch_size=RANKS * len(rows), zero_stage=stage)
    denoiser = teacher.denoiser()
    networks = build_networks(
        ROUND,
        denoiser,
        denoiser,
        student_network(teacher.network, Trained()),
        lambda net: EngineSpec.of(training, net, RANKS),
        DeepSpeedEngine,
    )

    def after(step: int, progress: Progress) -> bool:
        if step == steps:
            progress.report(place, training.batch_size)
        return False

    def stream(start: int) -> Iterator[Rows]:
        while True:
            yield rows

    def act() -> None:
        train(ROUND, networks, {"pairs": stream}, training, place, steps=steps, after=after)
        torch.distributed.barrier()

    return act


def collectives(weights: int, steps: int) -> Row:
    """Seconds of a step's exchanges alone: the sum of all gradients, and weights gathered from the ranks' parts."""
    whole, own = torch.randn(-(-weights // RANKS) * RANKS), torch.randn(-(-weights // RANKS))

    def reduce() -> None:
        for _ in range(steps):
            torch.distributed.all_reduce(whole)

    def gather() -> None:
        for _ in range(steps):
            torch.distributed.all_gather_single(whole, own)

    return {"reduce_s": round(1 / rate(reduce, steps), 4), "gather_s": round(1 / rate(gather, steps), 4)}


def main(steps: int, rows: Sequence[int], repeats: int) -> Iterator[Row]:
    """Measure."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    context = multiprocessing.get_context("spawn")
    found: multiprocessing.Queue[Row] = context.Queue()
    told = (port, steps, rows, repeats, found)
    ranks = [context.Process(target=rank, args=(number, *told)) for number in range(RANKS)]
    for process in ranks:
        process.start()
    for _ in range(len(rows) * len(PAIRS)):
        yield found.get(timeout=1800)
    for process in ranks:
        process.join()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--rows", type=int, nargs="+", default=ROWS)
    parser.add_argument("--repeats", type=int, default=9)
    args = parser.parse_args()
    show(main(args.steps, args.rows, args.repeats))
