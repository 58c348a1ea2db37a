"""Prompts, images and WebDataset files as people keep them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fewstep.doors import lazy

if TYPE_CHECKING:
    from fewstep.orchestrator.inputs.images import open_images as open_images
    from fewstep.orchestrator.inputs.prompts import read_prompts as read_prompts
    from fewstep.orchestrator.inputs.webdataset import open_samples as open_samples

__getattr__ = lazy(__file__)
