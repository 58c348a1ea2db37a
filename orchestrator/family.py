"""What every kind of diffusers pipeline that can be distilled has to tell."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import ClassVar, Generic, TypeVar

from diffusers import DiffusionPipeline
from torch import Tensor, nn

from orchestrator.network import PipelineNetwork

Pipeline = TypeVar("Pipeline", bound=DiffusionPipeline)


class Family(ABC, Generic[Pipeline]):
    """A loaded pipeline: what its network is shown, and what its latents look like.

    Conditions are spelled as text for every family; the empty text is the null condition.
    """

    pipeline_class: ClassVar[type[DiffusionPipeline]]
    task: ClassVar[str]  # as model hubs name it

    def __init__(self, pipeline: Pipeline) -> None:
        self.pipeline = pipeline
        for part in pipeline.components.values():
            if isinstance(part, nn.Module):
                part.requires_grad_(False).eval()

    @property
    @abstractmethod
    def network(self) -> PipelineNetwork:
        """What is distilled."""

    @property
    @abstractmethod
    def latent_shape(self) -> tuple[int, ...]:
        """Of one sample, without the batch."""

    @property
    def has_null(self) -> bool:
        """Whether the network was trained with a null condition, so that it can be guided."""
        return True

    @property
    def image_size(self) -> int:
        """Height and width of a picture."""
        return self.latent_shape[-1]

    @abstractmethod
    def encode(self, conditions: Sequence[str]) -> dict[str, Tensor]:
        """What the network is conditioned on, one row per condition. Raises BadInput for one that has no meaning."""

    @abstractmethod
    def decode(self, latents: Tensor) -> Tensor:
        """Latents to images [n, 3, height, width] in -1..1, float32; not clamped, which would stop gradients."""

    @abstractmethod
    def call(self, conditions: Sequence[str], negative: str, steps: int) -> Mapping[str, object]:
        """What the pipeline is called with for these conditions and a number of steps."""

    @abstractmethod
    def save_lora(self, folder: Path) -> None:
        """Write the network's adapters."""

    @staticmethod
    @abstractmethod
    def usage(place: str, condition: str, steps: int) -> tuple[str, str]:
        """Python that loads an exported folder, and its pipeline's arguments up to the number of steps."""
