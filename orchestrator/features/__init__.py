"""Networks that look at pictures: their features, and how far apart two pictures look."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fewstep.doors import lazy

if TYPE_CHECKING:
    from fewstep.orchestrator.features.feature_networks import FeatureNetwork as FeatureNetwork
    from fewstep.orchestrator.features.feature_networks import feature_network as feature_network
    from fewstep.orchestrator.features.perceptual import perceptual_distance as perceptual_distance

__getattr__ = lazy(__file__)
