"""The samplers a teacher can be run with: one table for generation and for the baselines of evaluation."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from torch import Tensor


class StepOutput(Protocol):
    """What a diffusers scheduler's step returns."""

    prev_sample: Tensor


class Scheduler(Protocol):
    """The part of a diffusers scheduler that sampling needs."""

    timesteps: Tensor
    init_noise_sigma: float
    config: Mapping[str, object]

    def set_timesteps(self, num_inference_steps: int) -> None:
        """Choose the times to visit."""
        ...

    def scale_model_input(self, sample: Tensor, timestep: Tensor) -> Tensor:
        """What the network is shown of a sample."""
        ...

    def step(self, model_output: Tensor, timestep: Tensor, sample: Tensor) -> StepOutput:
        """The sample at the next time."""
        ...


@dataclass(frozen=True)
class Solver:
    """A deterministic diffusers scheduler, set so that its first step starts at the schedule's last time."""

    scheduler: str  # diffusers class
    options: Mapping[str, object] = field(default_factory=dict)

    def build(self, config: Mapping[str, object]) -> Scheduler:
        """The scheduler for a teacher whose own scheduler has this configuration."""
        import diffusers

        return getattr(diffusers, self.scheduler).from_config(dict(config), **self.options)


# Trailing spacing: diffusers' default spacings start below the last time, which at few steps is far from pure
# noise (arXiv:2305.08891, section 3.3). The last step lands on clean data.
SOLVERS: dict[str, Solver] = {
    "ddim": Solver("DDIMScheduler", {"timestep_spacing": "trailing", "set_alpha_to_one": True, "clip_sample": False}),
    "dpm++": Solver(
        "DPMSolverMultistepScheduler",
        {
            "timestep_spacing": "trailing",
            "algorithm_type": "dpmsolver++",
            "solver_order": 2,
            "final_sigmas_type": "zero",
            "lower_order_final": True,
        },
    ),
    "unipc": Solver("UniPCMultistepScheduler", {"timestep_spacing": "trailing", "final_sigmas_type": "zero"}),
    # Euler's method on straight paths. diffusers' FlowMatchEulerDiscreteScheduler does not run in
    # StableDiffusionPipeline; first-order DPM-Solver++ on flow sigmas makes the same steps, and does.
    "flow-euler": Solver(
        "DPMSolverMultistepScheduler",
        {
            "prediction_type": "flow_prediction",
            "algorithm_type": "dpmsolver++",
            "solver_order": 1,
            "use_flow_sigmas": True,
            "flow_shift": 1.0,
            "final_sigmas_type": "zero",
            "rescale_betas_zero_snr": False,
        },
    ),
}
