"""Composes a teacher with classifier-free guidance, for a batch of samples."""

from __future__ import annotations

import torch
from torch import Tensor

from fewstep.methods.diffusion import Cond, Denoiser, Estimate, expand, solve

ALL = slice(None)


class GuidedDenoiser:
    """A teacher with classifier-free guidance composed, for samples that each have a condition and a scale.

    A guided evaluation is one batch of twice the size; where no sample has any guidance it is left out.
    """

    def __init__(self, teacher: Denoiser, cond: Cond, uncond: Cond, guidance_scale: Tensor) -> None:
        self.schedule = teacher.schedule
        self.evaluations = 0  # of the network, so far, of all samples together
        self._teacher, self._cond, self._scale = teacher, cond, guidance_scale
        self._uncond = {name: uncond[name].expand_as(value) for name, value in cond.items()}
        self._is_guided = not teacher.has_guidance_input and bool((guidance_scale != 1).any())

    def output(self, x_t: Tensor, time: Tensor, rows: Tensor | slice = ALL) -> Tensor:
        """The guided output of the network at its own `time` for these rows' samples, in float32."""
        cond = {name: value[rows] for name, value in self._cond.items()}
        time = time.expand(len(x_t))
        if self._teacher.has_guidance_input:
            cond["guidance_scale"] = self._scale[rows]
        if not self._is_guided:
            self.evaluations += len(x_t)
            return self._teacher.net(x_t, time, cond).float()
        self.evaluations += 2 * len(x_t)
        both = {name: torch.cat([value, self._uncond[name][rows]]) for name, value in cond.items()}
        conditional, unconditional = self._teacher.net(torch.cat([x_t, x_t]), time.repeat(2), both).float().chunk(2)
        return unconditional + expand(self._scale[rows], x_t) * (conditional - unconditional)

    def __call__(self, x_t: Tensor, t: Tensor, rows: Tensor | slice = ALL) -> Estimate:
        """What the network believes of these rows' samples at the schedule's times t [b]."""
        output = self.output(x_t, self.schedule.network_time(t), rows)
        return solve(self.schedule, self._teacher.prediction, x_t, t, output)
