"""Samples a teacher: its guided ODE, solved from noise by a scheduler."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from methods.diffusion import Cond
from orchestrator.solvers import Scheduler


@torch.inference_mode()
def sample_path(
    network: nn.Module,
    scheduler: Scheduler,
    noise: Tensor,
    cond: Cond,
    uncond: Cond,
    guidance_scale: Tensor,
    steps: int,
) -> tuple[Tensor, Tensor]:
    """Solve the guided ODE from unit noise [b, *latent] in `steps` evaluations.

    Returns the states [b, steps + 1, *latent], noise first, and their times [steps + 1], -1 for the last,
    which is clean. Guidance is evaluated as one batch of twice the size, and left out where no sample has any.
    """
    scheduler.set_timesteps(steps)
    states = [noise * scheduler.init_noise_sigma]
    w = guidance_scale.view(-1, *(1,) * (noise.ndim - 1))
    is_guided = bool((guidance_scale != 1).any())
    both = {name: torch.cat([value, uncond[name].expand_as(value)]) for name, value in cond.items()}
    for t in scheduler.timesteps:
        x = scheduler.scale_model_input(states[-1], t)
        if is_guided:
            time = t.to(x.device).expand(2 * len(x))
            conditional, unconditional = network(torch.cat([x, x]), time, both).float().chunk(2)
            output = unconditional + w * (conditional - unconditional)
        else:
            output = network(x, t.to(x.device).expand(len(x)), cond).float()
        states.append(scheduler.step(output, t, states[-1]).prev_sample)
    times = torch.cat([scheduler.timesteps.float().cpu(), torch.tensor([-1.0])])
    return torch.stack(states, 1), times
