"""A scheduler config as a schedule and a prediction."""

from __future__ import annotations

from collections.abc import Mapping
from typing import cast

from fewstep.methods.diffusion import Prediction
from fewstep.methods.schedules import DiscreteVP, RectifiedFlow, Schedule


def is_flow_matching(config: Mapping[str, object]) -> bool:
    """Is this the configuration of a flow-matching scheduler? Those have no betas."""
    return "beta_start" not in config


def prediction_of(config: Mapping[str, object]) -> Prediction:
    """What a network with this scheduler answers with; diffusers calls a velocity "flow_prediction"."""
    told = str(config["prediction_type"])
    return cast(Prediction, "flow" if told == "flow_prediction" else told)


def schedule_of(config: Mapping[str, object]) -> Schedule:
    """The schedule of a diffusers scheduler's configuration; DDIM holds the table that the others derive from."""
    if config.get("use_flow_sigmas"):
        return RectifiedFlow(float(str(config.get("flow_shift", 1.0))))
    from diffusers import DDIMScheduler

    return DiscreteVP(cast(DDIMScheduler, DDIMScheduler.from_config(dict(config))).alphas_cumprod)
