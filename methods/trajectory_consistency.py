"""Trajectory consistency distillation: any point of the ODE maps to any earlier one, not only to its end.

Zheng et al., "Trajectory Consistency Distillation", arXiv:2402.19159.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, ClassVar, Literal

from fewstep.methods.base import Adapters, Averaged, Losses, Nets, Round, Sampler, Source, Trained, Update
from fewstep.methods.batch import Batch
from fewstep.methods.diffusion import Cond, Denoiser, step
from fewstep.methods.lazy_torch import torch
from fewstep.methods.losses import l2, pseudo_huber
from fewstep.methods.search_space import Choice, LogUniform, Range, Uniform
from fewstep.methods.solution_points import GUIDANCE_RANGES, SolutionPoints, online_points, stored_points
from fewstep.methods.validation import (
    require,
    require_at_least,
    require_decay,
    require_guidance_range,
    require_positive,
)

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor


def trajectory_function(
    net: Denoiser, x_t: Float[Tensor, "b *latent"], t: Float[Tensor, "b"], s: Float[Tensor, "b"], cond: Cond
) -> Float[Tensor, "b *latent"]:
    """f(x_t, t -> s): the linear part solved exactly, x_0 and eps held (Eq. 18); s needs no input of the network."""
    return step(net.schedule, net(x_t, t, cond), s)


def trajectory_loss(
    nets: Nets,
    batch: Batch,
    *,
    points: Callable[[Nets, Batch], SolutionPoints],
    metric: Callable[[Tensor, Tensor], Tensor],
) -> Losses:
    """d(f(x_t, t -> s), f_target(x_u, u -> s)) with s <= u < t, u one guided teacher step from t (Algorithm 1)."""
    with torch.no_grad():
        x_t, t, x_u, u, cond, _ = points(nets, batch)
        clean = nets["student"].schedule.at(torch.zeros_like(u))
        s = clean + (u - clean) * batch.draw.uniform()
        x_s = trajectory_function(nets["target"], x_u, u, s, cond)
    return {"trajectory": metric(trajectory_function(nets["student"], x_t, t, s, cond), x_s).mean()}


@dataclass(frozen=True)
class TrajectoryConsistency(Adapters):
    """Low-rank adapters whose estimate leads to every s by one exponential-integrator step; s is no input."""

    student_steps: int = 4
    teacher_step: Literal["online", "stored"] = "online"
    gamma: float = 0.3  # stochasticity of sampling: 0 follows the ODE, 1 is consistency sampling
    guidance_scale: tuple[float, float] = (3.0, 15.0)
    skip: int = 20  # timesteps from t to u
    grid: int = 50
    loss: Literal["huber", "l2"] = "huber"
    huber_c: float = 1e-3
    ema_decay: float = 0.95
    lora_rank: int = 64  # 0 trains every weight

    paper: ClassVar[str] = "2402.19159"
    space: ClassVar[Mapping[str, Range]] = {
        "ema_decay": Choice((0.9, 0.95, 0.99)),
        "gamma": Uniform(0.0, 1.0),
        "guidance_scale": GUIDANCE_RANGES,
        "huber_c": LogUniform(1e-4, 1e-1),
        "lora_rank": Choice((8, 16, 64, 128)),
        "skip": Choice((20, 40, 100)),
    }

    def __post_init__(self) -> None:
        super().__post_init__()
        require_at_least(1, student_steps=self.student_steps, skip=self.skip)
        require(
            self.student_steps <= self.grid,
            f"student_steps must be at most grid={self.grid}, got {self.student_steps}",
        )
        require(0 <= self.gamma <= 1, f"gamma must be in [0, 1], got {self.gamma:g}")
        require_guidance_range(self.guidance_scale)
        require_positive(huber_c=self.huber_c)
        require_decay(ema_decay=self.ema_decay)

    def rounds(self) -> tuple[Round, ...]:
        """One round, on real data or on stored paths as in `methods/lcm.py`."""
        nets = {"student": Trained(self.lora), "target": Averaged(decay=self.ema_decay, is_target=True)}
        metric = {"huber": partial(pseudo_huber, c=self.huber_c), "l2": l2}[self.loss]
        points = {
            "online": partial(online_points, grid=self.grid, skip=self.skip, guidance_scale=self.guidance_scale),
            "stored": partial(stored_points, skip=self.skip),
        }[self.teacher_step]
        sources = {
            "online": {"data": Source("data", grid=self.grid)},
            "stored": {"path": Source("path", skip=self.skip, grid=self.grid)},
        }[self.teacher_step]
        update = Update("student", partial(trajectory_loss, points=points, metric=metric))
        return (
            Round(
                name="trajectory-consistency",
                updates=(update,),
                nets=nets,
                sources=sources,
                online=self.teacher_step == "online",
                guides=self.guidance_scale != (1.0, 1.0),
            ),
        )

    def sampler(self) -> Sampler:
        """Strategic stochastic sampling, guidance already inside."""
        return Sampler("strategic", gamma=self.gamma, grid=self.grid)
