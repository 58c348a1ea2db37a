"""Speeds up downloads from the Hugging Face hub."""

from __future__ import annotations

import os


def use_fast_downloads() -> None:
    """Let hf-xet, which huggingface_hub downloads with, take all the bandwidth and cores that it finds.

    It reads the variable when it first downloads. A value that is set already stays.
    """
    os.environ.setdefault("HF_XET_HIGH_PERFORMANCE", "1")
