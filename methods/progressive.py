"""Progressive distillation: one student step does what two teacher steps did, again and again.

Salimans and Ho, "Progressive Distillation for Fast Sampling of Diffusion Models", arXiv:2202.00512.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, ClassVar, Literal

from fewstep.methods.base import Losses, Nets, Round, Sampler, Source, Trained, Update
from fewstep.methods.batch import Batch, Draw
from fewstep.methods.diffusion import Cond, Denoiser, Estimate, coefficients, diffuse, guided, snr, step
from fewstep.methods.lazy_torch import torch
from fewstep.methods.losses import l2
from fewstep.methods.schedules import Schedule
from fewstep.methods.search_space import Choice, Range, Uniform
from fewstep.methods.validation import require_at_least, require_halvings, require_positive

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor

Weighting = Literal["truncated_snr", "snr_plus_one", "snr", "constant"]


def progressive_loss(nets: Nets, batch: Batch, *, steps: int, weighting: Weighting, guidance_scale: float) -> Losses:
    """Algorithm 2, for a student of `steps` steps."""
    rows = batch["data"]

    def believe(x_t: Tensor, t: Tensor) -> Estimate:
        return guided(nets["teacher"], x_t, t, rows.cond, rows.uncond, guidance_scale)

    return {"x0": halving(nets["student"], believe, rows.x0, rows.cond, batch.draw, steps, weighting)}


def halving(
    student: Denoiser,
    believe: Callable[[Tensor, Tensor], Estimate],
    x0: Float[Tensor, "b *latent"],
    cond: Cond,
    draw: Draw,
    steps: int,
    weighting: Weighting,
    *,
    overshoots: bool = False,
) -> Tensor:
    """The student's loss where `believe` leads it by two steps.

    A student that overshoots is led over two of its steps at once, but over the last one alone.
    """
    schedule = student.schedule
    u = draw.integers(1, steps + 1) / steps
    reach = torch.where(u > 1.5 / steps, 2, 1) if overshoots else 1
    t, middle, s = (schedule.at(u - reach * half / (2 * steps)) for half in range(3))
    with torch.no_grad():
        z_t = diffuse(schedule, x0, draw.normal(x0), t)
        z_middle = step(schedule, believe(z_t, t), middle)
        z_s = step(schedule, believe(z_middle, middle), s)
    return following(student, z_t, t, z_s, s, cond, weighting)


def stored_progressive_loss(nets: Nets, batch: Batch, *, steps: int, weighting: Weighting) -> Losses:
    """Algorithm 2 with two steps that the teacher made when the row was generated.

    A departure from the paper, whose z_t is noised data: these states are the teacher's own.
    """
    rows = batch["path"]
    i = 2 * batch.draw.integers(0, steps)
    here = torch.arange(len(i), device=i.device)
    z_t, t, z_s, s = rows.path[here, i], rows.times[here, i], rows.path[here, i + 2], rows.times[here, i + 2]
    return {"x0": following(nets["student"], z_t, t, z_s, s, rows.cond, weighting)}


def following(
    student: Denoiser,
    z_t: Float[Tensor, "b *latent"],
    t: Float[Tensor, "b"],
    z_s: Float[Tensor, "b *latent"],
    s: Float[Tensor, "b"],
    cond: Cond,
    weighting: Weighting,
) -> Tensor:
    """w(t) || x_0(z_t) - x ||^2, where x is what leads from z_t to z_s in one DDIM step."""
    schedule = student.schedule
    x0 = implied_x0(schedule, z_t, t, z_s, s)
    return (weight(weighting, schedule, t) * l2(student(z_t, t, cond).x0, x0)).mean()


def implied_x0(
    schedule: Schedule, z_t: Float[Tensor, "b *latent"], t: Tensor, z_s: Float[Tensor, "b *latent"], s: Tensor
) -> Float[Tensor, "b *latent"]:
    """The x_0 with which one DDIM step from z_t ends at z_s (appendix G); z_s itself where s is clean data."""
    alpha_t, sigma_t = coefficients(schedule, t, z_t)
    alpha_s, sigma_s = coefficients(schedule, s, z_t)
    ratio = sigma_s / sigma_t
    return (z_s - ratio * z_t) / (alpha_s - ratio * alpha_t)


def weight(weighting: Weighting, schedule: Schedule, t: Float[Tensor, "b"]) -> Float[Tensor, "b"]:
    """Of the squared error of x_0 (section 4); at zero terminal SNR the first two still see the noise's end."""
    ratio = snr(schedule, t)
    return {
        "truncated_snr": ratio.clamp_min(1),
        "snr_plus_one": ratio + 1,
        "snr": ratio,
        "constant": torch.ones_like(ratio),
    }[weighting]


def halvings(
    teacher_steps: int,
    student_steps: int,
    student: Trained,
    loss: Callable[..., Losses],
    last_rounds_length: float,
    source: Callable[[int], Source] = lambda steps: Source("data"),
) -> tuple[Round, ...]:
    """One round per halving, each taught by the one before it; the first by the base.

    `loss` takes the round's number of student steps as `steps`, and so does `source`.
    """
    rounds: list[Round] = []
    steps = teacher_steps // 2
    while steps >= student_steps:
        before = "previous" if rounds else "base"
        read = source(steps)
        rounds.append(
            Round(
                name=f"{2 * steps}-to-{steps}",
                updates=(Update("student", partial(loss, steps=steps)),),
                nets={"student": student},
                sources={read.kind: read},
                start=before,
                teacher=before,
                online=read.kind == "data",
                length=last_rounds_length if steps <= 2 else 1.0,
                anneal=True,
            )
        )
        steps //= 2
    return tuple(rounds)


@dataclass(frozen=True)
class Progressive:
    """Halve the number of DDIM steps until few remain; no averages, and the learning rate falls in each round.

    The paper distills unguided models. Here the first round's teacher may be guided, by one fixed scale that
    then is inside every student.
    """

    teacher_steps: int = 1024
    student_steps: int = 4
    teacher_step: Literal["online", "stored"] = "online"
    weighting: Weighting = "truncated_snr"
    prediction: Literal["", "sample", "epsilon", "v_prediction"] = ""  # of the student; "" is the teacher's
    guidance_scale: float = 1.0  # of the first teacher; 1 is none
    last_rounds_length: float = 2.0  # the halvings to 2 steps and to 1 are the hard ones (section 5)

    paper: ClassVar[str] = "2202.00512"
    space: ClassVar[Mapping[str, Range]] = {
        "last_rounds_length": Uniform(1.0, 4.0),
        "teacher_steps": Choice((64, 256, 1024)),
        "weighting": Choice(("truncated_snr", "snr_plus_one")),
    }

    def __post_init__(self) -> None:
        require_halvings(self.teacher_steps, self.student_steps)
        require_at_least(1, guidance_scale=self.guidance_scale)
        require_positive(last_rounds_length=self.last_rounds_length)

    def rounds(self) -> tuple[Round, ...]:
        """log2(teacher_steps / student_steps) halvings."""
        student = Trained(prediction=self.prediction)
        if self.teacher_step == "stored":
            loss = partial(stored_progressive_loss, weighting=self.weighting)
            return halvings(self.teacher_steps, self.student_steps, student, loss, self.last_rounds_length, self._path)
        loss = partial(progressive_loss, weighting=self.weighting)
        unguided = partial(loss, guidance_scale=1.0)
        first, *rest = halvings(self.teacher_steps, self.student_steps, student, unguided, self.last_rounds_length)
        guided_loss = partial(loss, steps=self.teacher_steps // 2, guidance_scale=self.guidance_scale)
        updates = (Update("student", guided_loss),)
        return (replace(first, updates=updates, guides=self.guidance_scale != 1), *rest)

    def _path(self, steps: int) -> Source:
        scale = self.guidance_scale if 2 * steps == self.teacher_steps else 1.0
        return Source("path", 2 * steps, "dpm++1", (scale, scale))

    def sampler(self) -> Sampler:
        """DDIM, guidance already inside."""
        return Sampler("ddim")
