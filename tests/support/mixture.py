"""A 2-D world whose score is known exactly: three Gaussians, and conditions that weigh them."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace

import torch
from diffusers import DDIMScheduler
from torch import Tensor, nn

from fewstep.methods.base import Averaged, Critic, Round, Trained
from fewstep.methods.batch import Batch, Draw, Rows
from fewstep.methods.diffusion import Cond, Denoiser, Estimate, coefficients, guided, step, target
from fewstep.methods.schedules import DiscreteVP

MEANS = torch.tensor([[1.6, 0.0], [-0.8, 1.4], [-0.8, -1.4]])
SPREAD = 0.5  # standard deviation of a mode
FAVORED = 0.7  # weight of the mode that a condition names


def schedule(timesteps: int = 1000) -> DiscreteVP:
    """Stable Diffusion's noise levels with zero terminal SNR."""
    scheduler = DDIMScheduler(
        num_train_timesteps=timesteps,
        beta_start=0.85 / timesteps,
        beta_end=12 / timesteps,
        beta_schedule="scaled_linear",
        rescale_betas_zero_snr=True,
    )
    return DiscreteVP(scheduler.alphas_cumprod)


class ExactNetwork(nn.Module):
    """The v that the mixture's posterior mean answers with; `cond["modes"]` weighs the modes."""

    def __init__(self, noise_levels: DiscreteVP) -> None:
        super().__init__()
        self.noise_levels = noise_levels

    def forward(self, x_t: Tensor, time: Tensor, cond: Cond) -> Tensor:
        alpha, sigma = coefficients(self.noise_levels, time, x_t)
        variance = (alpha * SPREAD) ** 2 + sigma**2
        apart = x_t[:, None] - alpha[:, None] * MEANS
        likelihood = -(apart**2).sum(-1) / (2 * variance) + cond["modes"].log()
        mean = (likelihood.softmax(1)[..., None] * (MEANS + (alpha * SPREAD**2 / variance)[:, None] * apart)).sum(1)
        estimate = Estimate(mean, (x_t - alpha * mean) / sigma.clamp_min(1e-6))
        return target("v_prediction", self.noise_levels, estimate, time)


class StudentNetwork(nn.Module):
    """The exact network, and a correction that starts at zero and may know the guidance scale."""

    def __init__(self, noise_levels: DiscreteVP, width: int = 96) -> None:
        super().__init__()
        self.exact = ExactNetwork(noise_levels)
        last = nn.Linear(width, 2)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
        self.body = nn.Sequential(nn.Linear(2 + 6 + 3 + 1, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU(), last)

    def forward(self, x_t: Tensor, time: Tensor, cond: Cond) -> Tensor:
        u = time[:, None] / len(self.exact.noise_levels.alphas_cumprod)
        waves = torch.cat([(u * math.pi * k / 2).cos() for k in range(1, 7)], 1)
        w = cond.get("guidance_scale", torch.ones(len(x_t)))[:, None] / 4
        correction = self.body(torch.cat([x_t, waves, cond["modes"], w], 1))
        return self.exact(x_t, time, {"modes": cond["modes"]}) + correction


class Blob(nn.Module):
    """A generator of one Gaussian beside the mixture, and a correction that starts at zero; it answers with x_0."""

    def __init__(self, width: int = 96) -> None:
        super().__init__()
        last = nn.Linear(width, 2)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
        self.body = nn.Sequential(nn.Linear(2 + 3, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU(), last)

    def forward(self, x_t: Tensor, time: Tensor, cond: Cond) -> Tensor:
        return 1 + 0.7 * x_t + self.body(torch.cat([x_t, cond["modes"]], 1))


def teacher(noise_levels: DiscreteVP) -> Denoiser:
    """The exact denoiser."""
    return Denoiser(ExactNetwork(noise_levels), noise_levels, "v_prediction")


def conditions(labels: Tensor) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Weights of the modes for each label, and with no label."""
    rest = (1 - FAVORED) / (len(MEANS) - 1)
    modes = torch.full((len(labels), len(MEANS)), rest).scatter(1, labels[:, None], FAVORED)
    return {"modes": modes}, {"modes": torch.full_like(modes, 1 / len(MEANS))}


def rows(samples: int, noise_levels: DiscreteVP, steps: int, scales: tuple[float, float]) -> tuple[Rows, Rows]:
    """What generation would store, as rows of a `path` source, and true data as rows of a `data` source."""
    generator = torch.Generator().manual_seed(0)
    cond, uncond = conditions(torch.randint(len(MEANS), (samples,), generator=generator))
    w = scales[0] + (scales[1] - scales[0]) * torch.rand(samples, generator=generator)
    noise = torch.randn(samples, 2, generator=generator)
    points, times = solve(teacher(noise_levels), noise, cond, uncond, w, steps)
    modes = torch.multinomial(cond["modes"], 1, generator=generator)[:, 0]
    x0 = MEANS[modes] + SPREAD * torch.randn(samples, 2, generator=generator)
    path = Rows({"path": points, "times": times, "guidance_scale": w}, cond, uncond)
    return path, Rows({"x0": x0}, cond, uncond)


@torch.no_grad()
def solve(denoiser: Denoiser, noise: Tensor, cond: Cond, uncond: Cond, w: Tensor, steps: int) -> tuple[Tensor, Tensor]:
    """The guided ODE by DDIM on the trailing grid: points [b, steps + 1, 2] and times [b, steps + 1]."""
    times = denoiser.schedule.at(torch.arange(steps, -1, -1) / steps).round()
    points = [noise]
    for t, s in zip(times[:-1].expand(len(noise), -1).T, times[1:].expand(len(noise), -1).T, strict=True):
        points.append(step(denoiser.schedule, guided(denoiser, points[-1], t, cond, uncond, w), s))
    return torch.stack(points, 1), times.expand(len(noise), -1)


def networks(round_: Round, noise_levels: DiscreteVP) -> dict[str, Denoiser]:
    """The round's student and averages, and the teacher."""
    torch.manual_seed(0)
    student = StudentNetwork(noise_levels)
    nets = {"teacher": teacher(noise_levels), "student": Denoiser(student, noise_levels, "v_prediction")}
    for name, net in round_.nets.items():
        if isinstance(net, Averaged):
            copied = copy.deepcopy(student).requires_grad_(False)
            nets[name] = Denoiser(copied, noise_levels, "v_prediction")
    return nets


def train(
    round_: Round,
    nets: Mapping[str, Denoiser],
    sources: Mapping[str, Rows],
    steps: int,
    batch_size: int = 128,
    learning_rate: float = 3e-3,
    observe: Callable[[int], None] = lambda step: None,
) -> None:
    """Plain training of a round with one update, drawing as the runtime does."""
    (update,) = round_.updates
    weights = dict(module(nets["student"]).named_parameters())
    optimizer = torch.optim.Adam(weights.values(), learning_rate)
    size = len(next(iter(sources.values())))
    for number in range(steps):
        here = slice((number * batch_size) % size, (number * batch_size) % size + batch_size)
        draw = Draw(0, number, 0, range(batch_size))
        batch = Batch({name: source.take(here) for name, source in sources.items()}, draw)
        optimizer.zero_grad()
        torch.stack(list(update.loss(nets, batch).values())).sum().backward()
        optimizer.step()
        for name, net in round_.nets.items():
            if isinstance(net, Averaged):
                for value, weight in zip(module(nets[name]).parameters(), weights.values(), strict=True):
                    value.data.lerp_(weight.data, 1 - net.decay)
        observe(number)


def rolled_out(round_: Round, nets: Mapping[str, Denoiser | nn.Module], batch: Batch) -> Batch:
    """The batch with what the round makes of the student once a step."""
    if not round_.rollout:
        return batch
    with torch.no_grad():
        rollout = round_.rollout(nets, replace(batch, draw=other_draw(batch.draw, len(round_.updates))))  # pyright: ignore
    return replace(batch, sources={**batch.sources, "rollout": rollout})


def other_draw(draw: Draw, update: int) -> Draw:
    """The same place, for another update."""
    return Draw(draw.seed, draw.step, update, draw.rows)


def alternate(
    round_: Round,
    nets: Mapping[str, Denoiser | nn.Module],
    sources: Mapping[str, Rows],
    steps: int,
    batch_size: int = 128,
    learning_rate: float = 1e-3,
) -> None:
    """Plain training of a round with several updates in turn, as the runtime does; averages are not followed."""
    optimizers: dict[str, torch.optim.Optimizer] = {}
    for name, net in round_.nets.items():
        if isinstance(net, Trained | Critic):
            rate = learning_rate * net.lr_scale
            optimizers[name] = torch.optim.Adam(weights(nets[name]), rate, betas=net.betas)
    size = len(next(iter(sources.values())))
    for step_number in range(steps):
        here = slice((step_number * batch_size) % size, (step_number * batch_size) % size + batch_size)
        taken = {name: source.take(here) for name, source in sources.items()}
        batch = rolled_out(round_, nets, Batch(taken, Draw(0, step_number, 0, range(batch_size))))
        for number, update in enumerate(round_.updates):
            if step_number % update.every == 0:
                thaw(nets, optimizers, update.net)
                optimizers[update.net].zero_grad()
                losses = update.loss(nets, replace(batch, draw=other_draw(batch.draw, number)))
                torch.stack(list(losses.values())).sum().backward()
                optimizers[update.net].step()


def thaw(nets: Mapping[str, Denoiser | nn.Module], trained: Iterable[str], name: str) -> None:
    """Let gradients reach one of the trained networks alone, as the runtime does during an update."""
    for other in trained:
        for weight in weights(nets[other]):
            weight.requires_grad_(other == name)


def weights(net: Denoiser | nn.Module) -> list[nn.Parameter]:
    """The weights of a denoiser, or of a network that is none."""
    return list((module(net) if isinstance(net, Denoiser) else net).parameters())


def touched(nets: Mapping[str, Denoiser | nn.Module]) -> set[str]:
    """The networks whose weights were given a gradient, be it zero."""
    return {name for name, net in nets.items() if any(weight.grad is not None for weight in weights(net))}


def module(denoiser: Denoiser) -> nn.Module:
    """The network of a denoiser, which is a module here."""
    assert isinstance(denoiser.net, nn.Module)
    return denoiser.net


def one_step(denoiser: Denoiser, noise: Tensor, cond: Cond) -> Tensor:
    """The sample in one step from noise."""
    with torch.no_grad():
        return denoiser(noise, denoiser.schedule.at(torch.ones(len(noise))), cond).x0


def unconditional(samples: int, seed: int) -> Rows:
    """True data of the mixture with even weights, which is the null condition; blank rows for the same."""
    generator = torch.Generator().manual_seed(seed)
    _, cond = conditions(torch.zeros(samples, dtype=torch.long))
    modes = torch.randint(len(MEANS), (samples,), generator=generator)
    x0 = MEANS[modes] + SPREAD * torch.randn(samples, 2, generator=generator)
    return Rows({"x0": x0, "blank": torch.zeros_like(x0)}, cond, cond)


def law_errors(student: Denoiser, samples: int = 2048) -> tuple[float, float, float]:
    """Of mean, covariance and law (an energy distance) of one-step samples with the null condition."""
    real = unconditional(samples, seed=1)
    x0 = one_step(student, torch.randn(samples, 2, generator=torch.Generator().manual_seed(2)), real.cond)
    covariance = MEANS.T @ MEANS / len(MEANS) + SPREAD**2 * torch.eye(2)  # the means' mean is zero
    law = energy_distance(x0, real.x0).item()
    return x0.mean(0).norm().item(), (x0.T.cov() - covariance).norm().item(), law


def energy_distance(a: Tensor, b: Tensor) -> Tensor:
    """Without bias; zero between two sets of samples of one law."""
    within = [torch.cdist(x, x).sum() / (len(x) * (len(x) - 1)) for x in (a, b)]
    return 2 * torch.cdist(a, b).mean() - within[0] - within[1]


def root_mean_square(a: Tensor, b: Tensor) -> float:
    """How far two sets of points are apart."""
    return (a - b).square().sum(1).mean().sqrt().item()
