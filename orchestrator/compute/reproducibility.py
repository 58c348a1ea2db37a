"""Make computations repeat to the bit, and say what they depend on."""

from __future__ import annotations

from fewstep.methods.lazy_torch import torch

Compute = dict[str, str | int]  # device, torch, threads: on the same, the same bytes come out again


def set_up(device: str, threads: int) -> Compute:
    """Make this process compute the same bits every time, and return what it computes on."""
    torch.set_num_threads(threads)
    torch.backends.cudnn.benchmark = False
    torch.backends.cudnn.deterministic = True
    name = torch.cuda.get_device_name() if device == "cuda" else torch.backends.cpu.get_cpu_capability()
    return {"device": f"{device} {name}", "torch": torch.__version__, "threads": threads}
