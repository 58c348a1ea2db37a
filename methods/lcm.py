"""Latent consistency models: any point of the guided ODE maps to its end in one step.

Luo et al., "Latent Consistency Models", arXiv:2310.04378, and "LCM-LoRA", arXiv:2311.05556.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, ClassVar, Literal

from fewstep.methods.base import Adapters, Averaged, Losses, Net, Nets, Round, Sampler, Source, Trained, Update
from fewstep.methods.batch import Batch
from fewstep.methods.diffusion import Cond, Denoiser, expand, with_guidance
from fewstep.methods.lazy_torch import torch
from fewstep.methods.losses import l2, pseudo_huber
from fewstep.methods.search_space import Choice, LogUniform, Range
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

TIMESTEP_SCALING = 10.0  # these two are fixed by the scheduler that students are sampled with
SIGMA_DATA = 0.5


def boundary_scalings(time: Float[Tensor, "b"]) -> tuple[Float[Tensor, "b"], Float[Tensor, "b"]]:
    """c_skip and c_out (section 4.1); (1, 0) at time 0."""
    scaled = TIMESTEP_SCALING * time
    norm = scaled**2 + SIGMA_DATA**2
    return SIGMA_DATA**2 / norm, scaled / norm.sqrt()


def consistency_function(
    net: Denoiser, x_t: Float[Tensor, "b *latent"], t: Float[Tensor, "b"], cond: Cond
) -> Float[Tensor, "b *latent"]:
    """f(x_t, t) = c_skip(t) x_t + c_out(t) x_0(x_t, t), which is x_t itself on clean data."""
    c_skip, c_out = (expand(c, x_t) for c in boundary_scalings(net.schedule.network_time(t)))
    return c_skip * x_t + c_out * net(x_t, t, cond).x0


def lcm_loss(
    nets: Nets,
    batch: Batch,
    *,
    points: Callable[[Nets, Batch], SolutionPoints],
    metric: Callable[[Tensor, Tensor], Tensor],
    target: str,
    guidance_input: bool,
) -> Losses:
    """d(f(x_t, w, c, t), f_target(x_s, w, c, s)), Algorithm 1 of arXiv:2310.04378."""
    with torch.no_grad():
        x_t, t, x_s, s, cond, w = points(nets, batch)
        cond = with_guidance(cond, w) if guidance_input else cond
        end = consistency_function(nets[target], x_s, s, cond)
    return {"consistency": metric(consistency_function(nets["student"], x_t, t, cond), end).mean()}


@dataclass(frozen=True)
class LCM:
    """Consistency distillation of the guided ODE, with the guidance scale as an input of the student.

    The paper's w in [2, 14] is a guidance scale in [3, 15] here, where 1 is none. `stored` rows bring the
    guidance scale that they were generated with, and their path takes `grid` steps or a multiple. A long `skip` learns
    in fewer steps, because the end of the ODE reaches the noise in fewer hops; stored, it costs no accuracy. Training
    at the `sampled` times alone learns in fewer steps too, for a student that is good at no other number of steps.
    """

    student_steps: int = 4
    teacher_step: Literal["online", "stored"] = "online"
    guidance_scale: tuple[float, float] = (3.0, 15.0)
    skip: int = 20  # timesteps from x_t to x_s
    grid: int = 50  # points that t is drawn from and inference times are chosen from; 48 suits flow-matching teachers
    times: Literal["all", "sampled"] = "all"  # to train at; sampled are those of student_steps and where their hops end
    loss: Literal["huber", "l2"] = "huber"
    huber_c: float = 1e-3
    ema_decay: float = 0.95  # of the target
    sampling_ema_decay: float = 0.999  # of the student that is the result

    paper: ClassVar[str] = "2310.04378"
    space: ClassVar[Mapping[str, Range]] = {
        "ema_decay": Choice((0.9, 0.95, 0.99)),
        "guidance_scale": GUIDANCE_RANGES,
        "huber_c": LogUniform(1e-4, 1e-1),
        "skip": Choice((20, 40, 100, 200)),
    }

    def __post_init__(self) -> None:
        _check(self)
        require_decay(ema_decay=self.ema_decay, sampling_ema_decay=self.sampling_ema_decay)

    def rounds(self) -> tuple[Round, ...]:
        """One round. The target follows the student closely; a slower average of it is the result.

        The paper has one average for both, at 0.999943: its horizon of 17,500 steps suits runs of 100,000.
        """
        nets = {
            "student": Trained(guidance_input=True),
            "target": Averaged(decay=self.ema_decay, is_target=True),
            "average": Averaged(decay=self.sampling_ema_decay),
        }
        update = Update("student", _loss(self, target="target", guidance_input=True))
        return (_round(self, "lcm", update, nets, result="average"),)

    def sampler(self) -> Sampler:
        """Multistep consistency sampling, guidance as an input."""
        return Sampler("renoising", guidance="input", grid=self.grid)


@dataclass(frozen=True)
class LCMLoRA(Adapters):
    """LCM on low-rank adapters: no guidance input, and the student is its own target.

    The adapters learn the range of guidance scales on average; a scale of 1 is right at inference.
    """

    student_steps: int = 4
    teacher_step: Literal["online", "stored"] = "online"
    guidance_scale: tuple[float, float] = (3.0, 15.0)
    skip: int = 20
    grid: int = 50
    times: Literal["all", "sampled"] = "all"
    loss: Literal["huber", "l2"] = "huber"
    huber_c: float = 1e-3
    lora_rank: int = 64

    paper: ClassVar[str] = "2311.05556"
    space: ClassVar[Mapping[str, Range]] = {
        "guidance_scale": GUIDANCE_RANGES,
        "huber_c": LogUniform(1e-4, 1e-1),
        "lora_rank": Choice((8, 16, 64, 128)),
        "skip": Choice((20, 40, 100, 200)),
    }

    def __post_init__(self) -> None:
        super().__post_init__()
        _check(self)
        require_at_least(1, lora_rank=self.lora_rank)

    def rounds(self) -> tuple[Round, ...]:
        """One round of one network, whose base is the teacher."""
        nets = {"student": Trained(self.lora)}
        update = Update("student", _loss(self, target="student", guidance_input=False))
        return (_round(self, "lcm-lora", update, nets, result="student"),)

    def sampler(self) -> Sampler:
        """Multistep consistency sampling, guidance already inside."""
        return Sampler("renoising", grid=self.grid)


def _check(method: LCM | LCMLoRA) -> None:
    require_at_least(1, student_steps=method.student_steps, skip=method.skip)
    require(
        method.student_steps <= method.grid,
        f"student_steps must be at most grid={method.grid}, got {method.student_steps}",
    )
    require(
        method.times == "all" or (method.teacher_step == "stored" and method.grid % method.student_steps == 0),
        f"times: sampled is for teacher_step: stored and a grid={method.grid} that student_steps divides",
    )
    require_guidance_range(method.guidance_scale)
    require_positive(huber_c=method.huber_c)


def _round(method: LCM | LCMLoRA, name: str, update: Update, nets: Mapping[str, Net], *, result: str) -> Round:
    sources = {
        "online": {"data": Source("data", grid=method.grid)},
        "stored": {"path": Source("path", skip=method.skip, grid=method.grid)},
    }[method.teacher_step]
    online, guides = method.teacher_step == "online", method.guidance_scale != (1.0, 1.0)
    return Round(name, (update,), nets, sources, result=result, online=online, guides=guides)


def _loss(method: LCM | LCMLoRA, *, target: str, guidance_input: bool) -> Callable[[Nets, Batch], Losses]:
    points = {
        "online": partial(online_points, grid=method.grid, skip=method.skip, guidance_scale=method.guidance_scale),
        "stored": partial(
            stored_points, skip=method.skip, student_steps=method.student_steps if method.times == "sampled" else 0
        ),
    }
    metrics = {"huber": partial(pseudo_huber, c=method.huber_c), "l2": l2}
    return partial(
        lcm_loss,
        points=points[method.teacher_step],
        metric=metrics[method.loss],
        target=target,
        guidance_input=guidance_input,
    )
