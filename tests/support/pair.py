"""Two processes that train together over gloo, without Ray."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from fewstep.orchestrator.engines.rank import Rank
from tests.support.source import ROOT


def run(module: str, folder: Path, *words: str, size: int = 2) -> None:
    """Run a module in each of the two, or of another number, and wait for all. `words` end its command line."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    ranks = [
        subprocess.Popen(
            [sys.executable, "-W", "ignore", "-m", module, str(rank), str(size), str(port), str(folder), *words],
            cwd=ROOT,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(size)
    ]
    outputs = [rank.communicate(timeout=900)[0] for rank in ranks]
    for rank, output in zip(ranks, outputs, strict=True):
        assert rank.returncode == 0, output[-3000:]


@contextmanager
def joined() -> Iterator[tuple[Rank, Path]]:
    """This process as a rank of the pair, by its command line, and the folder for what comes out. Ends the process."""
    rank, world_size, port = (int(word) for word in sys.argv[1:4])
    torch.set_num_threads(1)
    os.environ["LOCAL_RANK"] = str(rank)  # as Ray Train sets it
    rendezvous = f"tcp://127.0.0.1:{port}"
    torch.distributed.init_process_group("gloo", init_method=rendezvous, rank=rank, world_size=world_size)
    yield Rank(rank, world_size, torch.device("cpu")), Path(sys.argv[4])
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()
    # Not through C++'s teardown: DeepSpeed keeps its process groups past this line, and a rank was once ended by
    # std::terminate, as happens where a thread still runs then.
    os._exit(0)
