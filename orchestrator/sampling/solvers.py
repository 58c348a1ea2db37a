"""Lists the solvers a teacher can be sampled with: one table for generation and for the baselines of evaluation."""

from __future__ import annotations

from collections.abc import Callable, Mapping
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


VP = ("epsilon", "sample", "v_prediction")
FLOW = ("flow",)
ANY = (*VP, *FLOW)


@dataclass(frozen=True)
class Solver:
    """A way from noise to data. It starts at the schedule's last time, and its last step lands on clean data."""

    scheduler: str  # a diffusers class, or one of `sampling.ode.OURS`
    options: Mapping[str, object] = field(default_factory=dict)
    predictions: tuple[str, ...] = VP  # of the teachers that it can sample
    evaluations: Callable[[int], int] = lambda steps: steps  # of the network, for a number of steps
    is_scaled: bool = False  # its states are x / alpha
    is_adaptive: bool = False  # it evaluates until its tolerance is met, `evaluations` times at least
    divides_by_alpha: bool = False
    needs_divisor: bool = False  # of the number of times, as its number of steps
    is_stochastic: bool = False  # it draws noise on its way: no ODE's path, so for evaluation alone

    def build(self, config: Mapping[str, object], steps: int) -> Scheduler:
        """The diffusers scheduler for a teacher whose own has this configuration, with its times set."""
        import diffusers

        scheduler = getattr(diffusers, self.scheduler).from_config(dict(config), **self.options)
        # By itself it spends the last step on what little is left a thousandth before clean data.
        is_flow_match = isinstance(scheduler, diffusers.FlowMatchEulerDiscreteScheduler)
        scheduler.set_timesteps(**{"sigmas": falling(steps)} if is_flow_match else {"num_inference_steps": steps})
        return scheduler

    def steps_within(self, evaluations: int, times: int) -> int:
        """The most steps that so many evaluations are enough for, on a schedule of so many times."""
        counts = range(1, evaluations + 1)
        return max(n for n in counts if self.evaluations(n) <= evaluations and not (self.needs_divisor and times % n))


def falling(steps: int) -> list[float]:
    """The noise levels of straight paths that fall evenly from 1, without the last, clean data."""
    return [1 - step / steps for step in range(steps)]


# Trailing spacing: diffusers' default spacings start below the last time, which at few steps is far from pure
# noise (arXiv:2305.08891, section 3.3).
_TRAILING = {"timestep_spacing": "trailing"}
_SIGMAS = {**_TRAILING, "use_karras_sigmas": False}
SOLVERS: dict[str, Solver] = {
    # `evaluation.Evaluator` adds the variances that it calibrated, and the generators that draw its noise.
    "analytic-dpm": Solver("AnalyticDPM", predictions=ANY, is_stochastic=True),
    "ddim": Solver("DDIMScheduler", {**_TRAILING, "set_alpha_to_one": True, "clip_sample": False}, needs_divisor=True),
    "dpm++": Solver(
        "DPMSolverMultistepScheduler",
        {
            **_SIGMAS,
            "algorithm_type": "dpmsolver++",
            "solver_order": 2,
            "final_sigmas_type": "zero",
            "lower_order_final": True,
        },
        predictions=ANY,
    ),
    # DDIM's steps, for numbers of them that do not divide the number of times.
    "dpm++1": Solver(
        "DPMSolverMultistepScheduler",
        {**_SIGMAS, "algorithm_type": "dpmsolver++", "solver_order": 1, "final_sigmas_type": "zero"},
    ),
    "euler": Solver("EulerDiscreteScheduler", {**_SIGMAS, "final_sigmas_type": "zero"}, is_scaled=True),
    "flow-match-euler": Solver("FlowMatchEulerDiscreteScheduler", {"stochastic_sampling": False}, predictions=FLOW),
    # diffusers' HeunDiscreteScheduler steps in x / alpha. Where a path starts near alpha = 0, the correction of its
    # first step is a difference of nearly equal slopes times thousands.
    "heun": Solver("Heun", {"grid": "trailing"}, predictions=ANY, evaluations=lambda steps: 2 * steps - 1),
    "heun-karras": Solver("Heun", {"grid": "karras"}, predictions=ANY, evaluations=lambda steps: 2 * steps - 1),
    "pndm": Solver(
        "PNDMScheduler",
        {**_TRAILING, "set_alpha_to_one": True, "skip_prk_steps": True},
        predictions=("epsilon", "v_prediction"),
        evaluations=lambda steps: steps + 1 if steps > 1 else 1,  # the first of several is taken twice
        divides_by_alpha=True,
        needs_divisor=True,
    ),
    "rk45": Solver(
        "RK45",
        {"tolerance": 1e-5},
        predictions=ANY,
        evaluations=lambda steps: 6 * steps + 2,
        is_adaptive=True,
    ),
    "unipc": Solver("UniPCMultistepScheduler", {**_SIGMAS, "final_sigmas_type": "zero"}, predictions=ANY),
}
ODE_SOLVERS = {name: solver for name, solver in SOLVERS.items() if not solver.is_stochastic}  # trajectories are theirs
