"""Tell what an exported folder holds, by its files alone."""

from __future__ import annotations

from pathlib import Path


def holds_pipeline(student: Path) -> bool:
    """Whether a folder holds a pipeline; else it holds adapters alone, in `lora`, with their scheduler."""
    return (student / "model_index.json").is_file()
