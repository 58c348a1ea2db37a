"""teachers/revision.py."""

from __future__ import annotations

import hashlib
import importlib
import inspect
import json
from pathlib import Path

import torch
from torch import nn


def folder_hash(folder: Path) -> str:
    """Hash of a pipeline's own files: its index and the components that the index names; or of a student's adapters."""
    index = folder / "model_index.json"
    parts = [index] if index.is_file() else []
    for name in sorted(json.loads(index.read_text())) if parts else ("lora", "scheduler"):
        if (folder / name).is_dir():
            parts += sorted(file for file in (folder / name).rglob("*") if file.is_file())
    whole = hashlib.sha256()
    for file in parts:
        with file.open("rb") as stream:
            whole.update(f"{file.relative_to(folder).as_posix()}\0".encode())
            whole.update(hashlib.file_digest(stream, "sha256").digest())
    return whole.hexdigest()


def factory_hash(factory: str, network: nn.Module) -> str:
    """Hash of a factory's module and of the weights that it made."""
    source = inspect.getsourcefile(importlib.import_module(factory.partition(":")[0]))
    whole = hashlib.sha256(Path(str(source)).read_bytes())
    for name, value in sorted(network.state_dict().items()):
        whole.update(f"{name} {value.dtype} {list(value.shape)}\0".encode())
        whole.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return whole.hexdigest()
