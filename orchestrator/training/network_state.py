"""Saves and loads a round's networks: weights, optimizers, averages. Knows nothing of steps or hashes."""

from __future__ import annotations

import contextlib
import io
import shutil
from argparse import Namespace
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import functional as F

from fewstep.orchestrator.engines.deepspeed import TAG, import_deepspeed
from fewstep.orchestrator.engines.moving_average import Average
from fewstep.orchestrator.engines.rank import Rank
from fewstep.orchestrator.training.round_networks import RoundNetworks


def save(networks: RoundNetworks, folder: Path, rank: int) -> None:
    """Write this rank's part; every rank calls it."""
    for name, engine in networks.engines.items():
        engine.save(folder / name)
    for name, average in networks.averages.items():
        if average.is_cut or not rank:
            save_file(average.state(), _file(folder, name, average, rank))


def load(networks: RoundNetworks, folder: Path, rank: int) -> None:
    """Go on from what as many ranks wrote; every rank calls it."""
    for name, engine in networks.engines.items():
        engine.load(folder / name)
    for name, average in networks.averages.items():
        average.restore(load_file(_file(folder, name, average, rank)))


def load_rescaled(networks: RoundNetworks, folder: Path, rank: Rank, world_size: int) -> None:
    """Go on from what another number of ranks wrote, `world_size`; every rank calls it.

    Engines go through DeepSpeed's universal checkpoints (arXiv:2406.18820), which lie beside the folder meanwhile.
    """
    universal = folder.with_name(f"{folder.name}.universal")
    if rank.index == 0:
        shutil.rmtree(universal, ignore_errors=True)
        for name in networks.engines:
            _convert(folder / name / TAG, universal / name / TAG)
    torch.distributed.barrier()
    for name, engine in networks.engines.items():
        engine.load(universal / name, is_universal=True)
    for name, average in networks.averages.items():
        average.restore(_recut(folder, name, average, rank.index, world_size))
    torch.distributed.barrier()
    if rank.index == 0:
        shutil.rmtree(universal)


def _file(folder: Path, name: str, average: Average, rank: int) -> Path:
    return folder / f"{name}-rank{rank if average.is_cut else 0}.safetensors"


def _convert(engine: Path, out: Path) -> None:
    import_deepspeed()
    from deepspeed.checkpoint import ds_to_universal

    options = Namespace(
        input_folder=str(engine),
        output_folder=str(out),
        num_extract_workers=1,
        num_merge_workers=1,
        keep_temp_folder=False,
        strict=True,
        inject_missing_state=True,
    )
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        ds_to_universal.main(options)


def _recut(folder: Path, name: str, average: Average, rank: int, world_size: int) -> dict[str, Tensor]:
    """A rank's values out of those of `world_size` others; shards are cut as DeepSpeed does, zeros after the end."""
    states = [load_file(_file(folder, name, average, other)) for other in range(world_size)]
    if not average.is_cut:
        return states[0]
    recut: dict[str, Tensor] = {}
    for key, mine in average.state().items():
        whole = torch.cat([state[key].flatten() for state in states])
        shard = whole[rank * mine.numel() : (rank + 1) * mine.numel()]
        recut[key] = F.pad(shard, (0, mine.numel() - shard.numel())).view_as(mine)
    return recut
