"""Hashes what a teacher is made of, so that data sets and evaluations know it again."""

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
    files = [index] if index.is_file() else []
    for name in sorted(json.loads(index.read_text())) if files else ("lora", "scheduler"):
        if (folder / name).is_dir():
            files += sorted(file for file in (folder / name).rglob("*") if file.is_file())
    digest = hashlib.sha256()
    for file in files:
        with file.open("rb") as stream:
            digest.update(f"{file.relative_to(folder).as_posix()}\0".encode())
            digest.update(hashlib.file_digest(stream, "sha256").digest())
    return digest.hexdigest()


def factory_hash(factory: str, network: nn.Module) -> str:
    """Hash of a factory's module and of its network's weights."""
    source = inspect.getsourcefile(importlib.import_module(factory.partition(":")[0]))
    digest = hashlib.sha256(Path(str(source)).read_bytes())
    for name, value in sorted(network.state_dict().items()):
        digest.update(f"{name} {value.dtype} {list(value.shape)}\0".encode())
        digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()
