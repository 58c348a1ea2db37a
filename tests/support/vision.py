"""Vision transformers of a few thousand random weights, in folders that feature networks load from."""

from __future__ import annotations

from pathlib import Path

from transformers import (
    CLIPConfig,
    CLIPModel,
    CLIPTextConfig,
    CLIPVisionConfig,
    Dinov2Config,
    Dinov2Model,
    Dinov2WithRegistersConfig,
    Dinov2WithRegistersModel,
)

from tests.support import tiny

WIDTH = 16
SMALL = {"hidden_size": WIDTH, "num_hidden_layers": 1, "num_attention_heads": 2}


def clip_of(folder: Path, side: int = 28, patch: int = 14) -> Path:
    """Pictures and texts."""
    words = tiny.tokenizer(folder)
    vision = CLIPVisionConfig(**SMALL, intermediate_size=16, projection_dim=12, patch_size=patch, image_size=side)
    text = CLIPTextConfig(
        **SMALL,
        vocab_size=len(words),
        intermediate_size=16,
        projection_dim=12,
        max_position_embeddings=tiny.WORDS,
        eos_token_id=1,
    )
    config = CLIPConfig(text_config=text.to_dict(), vision_config=vision.to_dict(), projection_dim=12)
    CLIPModel(config).save_pretrained(folder)
    words.save_pretrained(folder)
    return folder


def dino_of(folder: Path, patch: int = 14) -> Path:
    """Class token and patches."""
    Dinov2Model(Dinov2Config(**SMALL, patch_size=patch, image_size=2 * patch)).save_pretrained(folder)
    return folder


def registered_dino_of(folder: Path, patch: int = 14) -> Path:
    """With four register tokens besides."""
    config = Dinov2WithRegistersConfig(**SMALL, patch_size=patch, image_size=2 * patch, num_register_tokens=4)
    Dinov2WithRegistersModel(config).save_pretrained(folder)
    return folder
