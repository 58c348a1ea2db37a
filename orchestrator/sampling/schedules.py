"""Reads a scheduler's configuration as a schedule and a prediction."""

from __future__ import annotations

from collections.abc import Mapping

from fewstep.methods.diffusion import Prediction
from fewstep.methods.schedules import DiscreteVP, RectifiedFlow, Schedule
from fewstep.orchestrator.errors import BadInput, nearest

PREDICTIONS: Mapping[str, Prediction] = {  # by what diffusers calls them
    "epsilon": "epsilon",
    "sample": "sample",
    "v_prediction": "v_prediction",
    "flow_prediction": "flow",
}


def is_flow_matching(config: Mapping[str, object]) -> bool:
    """Is this the configuration of a flow-matching scheduler? Those have no betas."""
    return "beta_start" not in config


def prediction_of(config: Mapping[str, object]) -> Prediction:
    """What a network with this scheduler answers with. Raises BadInput where fewstep does not know it."""
    name = str(config["prediction_type"])
    if name not in PREDICTIONS:
        known = ", ".join(PREDICTIONS)
        raise BadInput(f"teacher: its prediction_type is {name!r}{nearest(name, PREDICTIONS)}; fewstep knows {known}")
    return PREDICTIONS[name]


def schedule_of(config: Mapping[str, object]) -> Schedule:
    """The schedule of a diffusers scheduler's configuration; DDIM holds the table that the others derive from."""
    if config.get("use_flow_sigmas"):
        return RectifiedFlow(number(config, "flow_shift") if "flow_shift" in config else 1.0)
    from diffusers import DDIMScheduler

    scheduler = DDIMScheduler.from_config(dict(config))
    assert isinstance(scheduler, DDIMScheduler)
    return DiscreteVP(scheduler.alphas_cumprod)


def num_train_timesteps(config: Mapping[str, object]) -> int:
    """The number of times that a scheduler's network was trained at."""
    return int(number(config, "num_train_timesteps"))


def number(config: Mapping[str, object], name: str) -> float:
    """A number of a configuration, which came from JSON. Raises TypeError where it is something else."""
    value = config[name]
    if not isinstance(value, int | float):
        raise TypeError(f"{name} must be a number, got {value!r}")
    return float(value)
