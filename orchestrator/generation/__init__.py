"""Actors that fill a data set, and its repair."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fewstep.doors import lazy

if TYPE_CHECKING:
    from fewstep.orchestrator.generation.data_sets import encode_images as encode_images
    from fewstep.orchestrator.generation.data_sets import generate as generate
    from fewstep.orchestrator.generation.data_sets import import_samples as import_samples
    from fewstep.orchestrator.generation.factory import Factory as Factory
    from fewstep.orchestrator.generation.factory import Generated as Generated

__getattr__ = lazy(__file__)
