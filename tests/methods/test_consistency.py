"""Consistency distillation on a mixture whose ODE is known."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any, cast, get_args

import pytest
import torch
from diffusers import CMStochasticIterativeScheduler, ConsistencyModelPipeline, DDIMScheduler, UNet2DModel
from torch import Tensor, nn

from fewstep.methods.base import Averaged, Frozen, Losses, Source, Trained
from fewstep.methods.batch import Batch, Draw, Rows
from fewstep.methods.consistency import (
    Consistency,
    Metric,
    consistency_function,
    consistency_loss,
    heun_step,
    karras_times,
    stored_consistency_loss,
)
from fewstep.methods.diffusion import Cond, Denoiser, Estimate, step
from fewstep.methods.schedules import EDM, DiscreteVP, RectifiedFlow, Schedule
from tests.support import mixture
from tests.support.cosine_schedule import CosineVP

LEVELS = mixture.schedule()  # zero terminal SNR
SD = DiscreteVP(DDIMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear").alphas_cumprod)
SCHEDULES: dict[str, Schedule] = {"discrete": LEVELS, "cosine": CosineVP(), "edm": EDM(), "flow": RectifiedFlow()}
METRICS: tuple[Metric, ...] = get_args(Metric)

Answer = Callable[[Tensor, Tensor, Cond], Tensor]

every_schedule = pytest.mark.parametrize("name", SCHEDULES)
every_metric = pytest.mark.parametrize("metric", METRICS)


def numbers(seed: int, samples: int = 64) -> Tensor:
    return torch.randn(samples, 2, generator=torch.Generator().manual_seed(seed))


def batch_of(rows: range = range(64)) -> Batch:
    data = Rows({"x0": numbers(0, rows.stop)}, *mixture.conditions(torch.arange(rows.stop) % 3))
    return Batch({"data": data.take(slice(rows.start, rows.stop))}, Draw(0, 0, 0, rows))


def bend(k: float) -> Answer:
    """Some answer, which is not linear."""
    return lambda x_t, time, cond: k * x_t.tanh() + cond["modes"][:, :2]


def always(answer: Tensor) -> Answer:
    return lambda x_t, time, cond: answer


def recorded(net: Answer, seen: list[Any]) -> Answer:
    """The same network, which writes down what it is asked."""

    def recording(x_t: Tensor, time: Tensor, cond: Cond) -> Tensor:
        seen.append((x_t, time, cond))
        return net(x_t, time, cond)

    return recording


def papers(points: int = 40, sigma_min: float = 0.002, sigma_max: float = 80.0) -> CMStochasticIterativeScheduler:
    """The paper's own sampler, with all points of its grid."""
    scheduler = CMStochasticIterativeScheduler(points, sigma_min=sigma_min, sigma_max=sigma_max)
    scheduler.set_timesteps(points)
    return scheduler


def level(schedule: Schedule, t: Tensor) -> tuple[Tensor, Tensor]:
    """alpha, and sigma in units of x_0 + sigma eps."""
    alpha, sigma = schedule.alpha(t).double()[:, None], schedule.sigma(t).double()[:, None]
    return alpha, sigma / alpha


# The grid.


@every_schedule
@pytest.mark.parametrize("grid", [2, 18, 40])
def test_the_grid_is_that_of_the_papers_sampler_on_any_schedule(name: str, grid: int) -> None:
    t = karras_times(SCHEDULES[name], torch.arange(grid), grid, 0.002, 80.0)
    _, sigma = level(SCHEDULES[name], t)
    # float32 times; sigma is steep in them where there is nearly no signal
    torch.testing.assert_close(sigma[:, 0].float(), papers(grid).sigmas[:grid], rtol=1e-3, atol=0)


def test_a_schedule_that_ends_earlier_has_all_points_of_the_grid() -> None:
    t = karras_times(SD, torch.arange(40), 40, 0.002, 80.0)
    _, sigma = level(SD, t)
    last = ((1 - SD.alphas_cumprod[-1]) / SD.alphas_cumprod[-1]).sqrt().item()
    torch.testing.assert_close(sigma[:, 0].float(), papers(40, 0.002, last).sigmas[:40], rtol=1e-3, atol=0)
    assert t[0] == 999 and t[1] < 999


# The consistency function.


def preconditioned(x: Tensor, sigma: Tensor, output: Tensor) -> Tensor:
    """EDM's denoiser D = c_skip x + c_out F (arXiv:2206.00364, table 1)."""
    return 0.25 / (sigma**2 + 0.25) * x + sigma * 0.5 / (sigma**2 + 0.25).sqrt() * output


@every_schedule
@pytest.mark.parametrize("sigma_min", [0.002, 0.05])
def test_the_consistency_function_is_that_of_the_papers_sampler(name: str, sigma_min: float) -> None:
    schedule, scheduler = SCHEDULES[name], papers(64, sigma_min)
    t = schedule.time_of(scheduler.sigmas[:64])
    alpha, sigma = level(schedule, t)
    x, output = numbers(0).double() + sigma * numbers(1), numbers(2).double()
    found = consistency_function(
        Denoiser(always(preconditioned(x, sigma, output)), schedule, "sample"), (alpha * x).float(), t, {}, sigma_min
    )
    c_skip, c_out = scheduler.get_scalings_for_boundary_condition(sigma)
    torch.testing.assert_close(found.double(), c_skip * x + c_out * output, rtol=1e-4, atol=1e-4)


@every_schedule
@pytest.mark.parametrize("sigma_min", [0.002, 0.05])
def test_at_sigma_min_every_network_is_the_identity(name: str, sigma_min: float) -> None:
    schedule = SCHEDULES[name]
    t = karras_times(schedule, torch.full((64,), 39), 40, sigma_min, 80.0)
    alpha, _ = level(schedule, t)
    net = Denoiser(always(10 * numbers(1)), schedule, "sample")
    found = consistency_function(net, numbers(0), t, {}, sigma_min)
    torch.testing.assert_close(found.double(), numbers(0) / alpha, rtol=0, atol=1e-5)


def test_in_pure_noise_it_is_x0_and_has_a_gradient() -> None:
    t, x_t = torch.full((64,), 999.0), numbers(0).requires_grad_()
    assert LEVELS.alpha(t).count_nonzero() == 0
    cond, _ = mixture.conditions(torch.arange(64) % 3)
    net = Denoiser(bend(0.3), LEVELS, "v_prediction")
    found = consistency_function(net, x_t, t, cond, 0.002)
    assert torch.equal(found, net(x_t, t, cond).x0)
    (slope,) = torch.autograd.grad(found.sum(), x_t)
    assert slope.isfinite().all() and slope.any()


def test_the_student_starts_as_the_teachers_denoiser() -> None:
    (round_,) = Consistency(metric="l2").rounds()
    nets = mixture.networks(round_, LEVELS)
    cond, _ = mixture.conditions(torch.arange(64) % 3)
    t = LEVELS.time_of(torch.logspace(0, 2, 64))
    alpha, sigma = level(LEVELS, t)
    x_t = (alpha * (numbers(0) + sigma * numbers(1))).float()
    x0 = nets["teacher"](x_t, t, cond).x0
    found = consistency_function(nets["student"], x_t, t, cond, 0.002)
    assert ((found - x0).norm(dim=1) < 0.01 / sigma[:, 0]).all()  # what is left is of the order of sigma_min / sigma


# The teacher's step.


@torch.enable_grad()
def exact_eps(x: Tensor, sigma: Tensor, modes: Tensor) -> Tensor:
    """-sigma grad log p of the mixture with noise sigma, by differentiation in float64: dx / dsigma."""
    x = x.double().detach().requires_grad_()
    apart = (x[:, None] - mixture.MEANS).square().sum(-1)
    log_density = (modes.double().log() - apart / (2 * (mixture.SPREAD**2 + sigma**2))).logsumexp(1)
    (score,) = torch.autograd.grad(log_density.sum(), x)
    return -sigma * score


def heun(slope: Callable[[Tensor, Tensor], Tensor], x: Tensor, sigma: Tensor, following: Tensor) -> Tensor:
    """Heun's second order method, as textbooks have it."""
    h, k1 = following - sigma, slope(x, sigma)
    return x + h / 2 * (k1 + slope(x + h * k1, following))


def exact(schedule: Schedule) -> Denoiser:
    """The mixture's denoiser on any schedule, from 0.03 upwards on a discrete one."""
    times: dict[type, Callable[[Tensor], Tensor]] = {
        DiscreteVP: lambda time: time,
        EDM: lambda time: (4 * time).exp(),
        CosineVP: lambda time: time / 1000,
        RectifiedFlow: lambda time: time / 1000,
    }

    def net(x_t: Tensor, time: Tensor, cond: Cond) -> Tensor:
        alpha, sigma = level(schedule, times[type(schedule)](time))
        return x_t / alpha - sigma * exact_eps(x_t / alpha, sigma, cond["modes"])

    return Denoiser(net, schedule, "sample")


@every_schedule
def test_the_teachers_step_is_heuns_on_the_mixture(name: str) -> None:
    schedule, scheduler = SCHEDULES[name], papers(65, 0.05)
    t, s = schedule.time_of(scheduler.sigmas[:64]), schedule.time_of(scheduler.sigmas[1:65])
    (alpha_t, sigma_t), (alpha_s, sigma_s) = level(schedule, t), level(schedule, s)
    cond, _ = mixture.conditions(torch.arange(64) % 3)
    x, net = numbers(0) + sigma_t * numbers(1), exact(schedule)
    found = heun_step(lambda z, time: net(z, time, cond), schedule, (alpha_t * x).float(), t, s) / alpha_s
    expected = heun(lambda z, sigma: exact_eps(z, sigma, cond["modes"]), x, sigma_t, sigma_s)
    # float32; noise in units of x_0 is divided by an alpha as small as sigma is large
    torch.testing.assert_close(found / (1 + sigma_s), expected / (1 + sigma_s), rtol=0, atol=2e-4)


def test_the_teachers_step_is_of_second_order() -> None:
    schedule, modes = EDM(), mixture.conditions(torch.arange(64) % 3)[0]["modes"]
    sigma = torch.full((64,), 1.0, dtype=torch.float64)
    x = numbers(0) + numbers(1).double()

    def believe(x_t: Tensor, t: Tensor) -> Estimate:
        eps = exact_eps(x_t, t[:, None], modes)
        return Estimate(x_t - t[:, None] * eps, eps)

    def error(h: float, by_heun: bool) -> float:
        points = torch.linspace(1.0, 1.0 - h, 65, dtype=torch.float64)
        end = x
        for now, following in zip(points[:-1], points[1:], strict=True):
            end = heun(lambda z, level: exact_eps(z, level, modes), end, now, following)
        s = torch.full_like(sigma, 1.0 - h)
        found = heun_step(believe, schedule, x, sigma, s) if by_heun else step(schedule, believe(x, sigma), s)
        return mixture.root_mean_square(found, end)

    # The error of one step is of the next order: of h^3, and of h^2 for Euler's. Seen: 7.8 and 4.1.
    assert 7 < error(0.1, True) / error(0.05, True) < 9.5
    assert 3.5 < error(0.1, False) / error(0.05, False) < 4.7
    assert error(0.1, True) < 0.1 * error(0.1, False)


def test_a_step_to_where_one_is_goes_nowhere() -> None:
    """As all steps do above the last noise level of a schedule."""
    t, cond = torch.full((64,), 999.0), mixture.conditions(torch.arange(64) % 3)[0]
    net = Denoiser(bend(0.3), SD, "v_prediction")
    torch.testing.assert_close(heun_step(lambda x, time: net(x, time, cond), SD, numbers(0), t, t), numbers(0))


# The loss.


def setting(metric: Metric = "l2", **changes: float) -> dict[str, Any]:
    return {
        "grid": 8,
        "metric": metric,
        "huber_c": 0.1,
        "sigma_min": 0.05,
        "sigma_max": 20.0,
        "guidance_scale": 1.0,
        **changes,
    }


def with_perceptual(nets: dict[str, Denoiser]) -> dict[str, Any]:
    """A decoder that is not linear, and a distance that is no square."""
    return {**nets, "decoder": torch.sin, "perceptual": lambda a, b: (a - b).abs().sum(1)}


@every_schedule
@every_metric
@pytest.mark.parametrize("w", [1.0, 3.0])
def test_the_loss_is_that_of_the_paper(name: str, metric: Metric, w: float) -> None:
    schedule, seen = SCHEDULES[name], []
    nets = {
        "teacher": exact(schedule),
        "student": Denoiser(recorded(bend(-0.4), seen), schedule, "sample"),
        "target": Denoiser(bend(0.3), schedule, "sample"),
    }
    found = consistency_loss(with_perceptual(nets), batch_of(), **setting(metric, guidance_scale=w))
    ((x_t, time, cond),) = seen

    # In float64 and in the paper's units, x = x_0 + sigma eps; only x_t, and where on the grid it is, are as drawn.
    scheduler, uncond = papers(8, 0.05, 20.0), batch_of()["data"].uncond
    sigmas = scheduler.sigmas[:8].double()
    place = (schedule.network_time(schedule.time_of(sigmas.float()))[:, None] - time).abs().argmin(0)
    sigma_t, sigma_s = sigmas[place][:, None], sigmas[place + 1][:, None]
    (alpha_t, _), (alpha_s, _) = (
        level(schedule, schedule.time_of(sigma[:, 0].float())) for sigma in (sigma_t, sigma_s)
    )

    def slope(x: Tensor, sigma: Tensor) -> Tensor:
        return w * exact_eps(x, sigma, cond["modes"]) + (1 - w) * exact_eps(x, sigma, uncond["modes"])

    def f(k: float, x: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        """c_skip x + c_out F, with the F for which EDM's denoiser answers as the network does."""
        denoised = bend(k)(alpha * x, time, cond)
        skip, out = scheduler.get_scalings(sigma)
        c_skip, c_out = scheduler.get_scalings_for_boundary_condition(sigma)
        return c_skip * x + c_out * (denoised - skip * x) / out

    x = x_t / alpha_t
    a = f(-0.4, x, alpha_t, sigma_t)
    b = f(0.3, heun(slope, x, sigma_t, sigma_s), alpha_s, sigma_s)
    distances = {
        "perceptual": 2 * (a.sin() - b.sin()).abs(),
        "l1": (a - b).abs(),
        "l2": (a - b) ** 2,
        "huber": ((a - b) ** 2 + 0.01).sqrt() - 0.1,
    }
    assert set(found) == {"consistency"} and set(distances) == set(METRICS)
    torch.testing.assert_close(found["consistency"].double(), distances[metric].mean(), rtol=1e-3, atol=0)


@every_metric
def test_a_stored_step_is_the_teachers(metric: Metric) -> None:
    """What is learned from a stored pair of points is what is learned where the teacher steps from one to the other."""
    seen, asked = [], []
    nets = {
        "teacher": exact(EDM()),
        "student": Denoiser(recorded(bend(-0.4), seen), EDM(), "sample"),
        "target": Denoiser(recorded(bend(0.3), asked), EDM(), "sample"),
    }
    online = consistency_loss(with_perceptual(nets), batch_of(), **setting(metric))
    ((x_t, at_t, cond),), ((x_s, at_s, _),) = seen, asked
    rows = Rows({"path": torch.stack([x_t, x_s], 1), "times": torch.stack([(4 * at_t).exp(), (4 * at_s).exp()], 1)})
    rows = replace(rows, columns=rows.columns | {"guidance_scale": torch.ones(len(x_t))}, cond=cond)
    del nets["teacher"]
    told = {name: setting(metric)[name] for name in ("metric", "huber_c", "sigma_min")}
    batch = Batch({"path": rows}, Draw(0, 0, 0, range(len(x_t))))
    stored = stored_consistency_loss(with_perceptual(nets), batch, **told)
    torch.testing.assert_close(stored, online)


def test_no_point_has_less_noise_than_the_network_is_told_of() -> None:
    """Stable Diffusion's table begins at 0.029, and says time 0 of all below it."""
    nets = {
        "teacher": Denoiser(bend(0.3), SD, "sample"),
        "student": Denoiser(recorded(bend(-0.4), seen := []), SD, "sample"),
        "target": Denoiser(recorded(bend(0.3), asked := []), SD, "sample"),
    }
    for number in range(16):
        batch = replace(batch_of(), draw=Draw(0, number, 0, range(64)))
        consistency_loss(nets, batch, **setting(sigma_min=0.002))  # pyright: ignore[reportArgumentType]
    times = [torch.cat([time for _, time, _ in calls]) for calls in (seen, asked)]
    assert times[0].min() > 1 and times[1].min() < 1e-2
    assert all(len(time.round(decimals=2).unique()) == 7 for time in times)


def test_stored_rounds_read_heuns_path_on_the_karras_grid_and_need_no_teacher() -> None:
    (round_,) = Consistency(teacher_step="stored", grid=18, guidance_scale=2.0).rounds()
    assert dict(round_.sources) == {"path": Source("path", 18, "heun-karras", (2.0, 2.0))}
    assert not round_.online and not round_.is_guided


def test_the_target_is_one_point_closer_to_clean_data() -> None:
    samples, grid = 4096, 6
    asked: dict[str, list[Any]] = {"teacher": [], "student": [], "target": []}
    nets = {name: Denoiser(recorded(bend(0.3), seen), EDM(), "sample") for name, seen in asked.items()}
    consistency_loss(nets, batch_of(range(samples)), **setting(grid=grid))
    ((x_t, at_t, _),), ((_, at_s, _),) = asked["student"], asked["target"]
    (first, at_first, _), (_, at_second, _) = asked["teacher"]
    assert torch.equal(first, x_t) and torch.equal(at_first, at_t) and torch.equal(at_second, at_s)

    sigmas = papers(grid, 0.05, 20.0).sigmas[:grid]
    t, s = ((((4 * time).exp() / sigmas[:, None]).log().abs()).argmin(0) for time in (at_t, at_s))
    torch.testing.assert_close((4 * at_t).exp(), sigmas[t], rtol=1e-4, atol=0)
    torch.testing.assert_close((4 * at_s).exp(), sigmas[s], rtol=1e-4, atol=0)
    assert torch.equal(s, t + 1)
    counts = t.bincount(minlength=grid)  # points 0 to N - 1, hence N - 1 intervals
    assert counts[-1] == 0
    assert (counts[:-1] - samples / (grid - 1)).abs().max() < 4 * (samples / (grid - 1)) ** 0.5
    noise = (x_t - numbers(0, samples)) / sigmas[t][:, None]
    unrelated = torch.stack([t.float(), *noise.T, *numbers(0, samples).T]).corrcoef() - torch.eye(5)
    assert unrelated.abs().max() < 4 / samples**0.5  # four standard errors
    assert (noise.T.cov() - torch.eye(2)).abs().max() < 4 * (2 / samples) ** 0.5


@every_schedule
def test_both_points_have_the_same_noise(name: str) -> None:
    """A teacher that knows the answer steps along the line from noise to data."""
    schedule, x0, asked = SCHEDULES[name], batch_of()["data"].x0, {"student": [], "target": []}
    nets = {name: Denoiser(recorded(bend(0.3), seen), schedule, "sample") for name, seen in asked.items()}
    nets["teacher"] = Denoiser(always(x0), schedule, "sample")
    consistency_loss(nets, batch_of(), **setting(grid=2))
    noise = [
        (x - schedule.alpha(t) * x0) / schedule.sigma(t)
        for ((x, _, _),), t in zip(asked.values(), schedule.time_of(torch.tensor([[20.0], [0.05]])), strict=True)
    ]
    torch.testing.assert_close(*noise, rtol=1e-3, atol=1e-3)


@every_schedule
def test_the_last_target_is_the_teachers_point_itself(name: str) -> None:
    schedule = SCHEDULES[name]
    nets = {"teacher": exact(schedule), "student": Denoiser(bend(0.3), schedule, "sample")}
    losses = [
        consistency_loss(
            {**nets, "target": Denoiser(always(k * numbers(1)), schedule, "sample")}, batch_of(), **setting(grid=2)
        )
        for k in (1.0, 10.0)
    ]
    torch.testing.assert_close(losses[0]["consistency"], losses[1]["consistency"], rtol=1e-3, atol=0)


def test_an_unguided_teacher_is_asked_once_per_slope() -> None:
    seen: list[Any] = []
    nets = {name: Denoiser(bend(0.3), LEVELS, "sample") for name in ("student", "target")}
    nets["teacher"] = Denoiser(recorded(bend(0.3), seen), LEVELS, "sample")
    for w, rows in ((1.0, 64), (2.0, 128)):
        seen.clear()
        consistency_loss(nets, batch_of(), **setting(guidance_scale=w))
        assert [len(x) for x, _, _ in seen] == [rows, rows]


# The whole method.


@every_metric
def test_the_round_has_what_its_loss_calls_and_its_hyperparameters(metric: Metric) -> None:
    chosen = setting(metric, guidance_scale=3.0)
    (round_,) = Consistency(**chosen, ema_decay=0.9, sampling_ema_decay=0.99).rounds()
    expected = {"student": Trained(), "target": Averaged(decay=0.9, is_target=True), "average": Averaged(decay=0.99)}
    frozen = {"decoder": Frozen("decoder"), "perceptual": Frozen("perceptual")} if metric == "perceptual" else {}
    assert round_.nets == {**expected, **frozen}
    assert round_.result == "average" and round_.online
    nets = with_perceptual({name: Denoiser(bend(k), LEVELS, "sample") for name, k in NAMED.items()})
    assert round_.updates[0].loss(nets, batch_of()) == consistency_loss(nets, batch_of(), **chosen)


NAMED = {"teacher": 0.2, "student": -0.4, "target": 0.3}


@every_metric
def test_only_the_student_gets_gradients(metric: Metric) -> None:
    (round_,) = Consistency(**setting(metric, guidance_scale=3.0)).rounds()
    nets: dict[str, Any] = mixture.networks(round_, LEVELS)
    nets["teacher"] = Denoiser(mixture.StudentNetwork(LEVELS), LEVELS, "v_prediction")
    for net in nets.values():
        mixture.module(net).requires_grad_(True)
    images = nn.Linear(2, 3).requires_grad_(False)
    extra = {"decoder": images, "perceptual": lambda a, b: (a - b).square().mean(1)}
    round_.updates[0].loss({**nets, **extra}, batch_of())["consistency"].backward()
    assert mixture.touched({**nets, "decoder": images}) == {"student"}
    assert any(weight.grad.any() for weight in mixture.weights(nets["student"]) if weight.grad is not None)


@every_metric
def test_the_loss_does_not_depend_on_how_the_batch_is_split(metric: Metric) -> None:
    nets = with_perceptual({name: Denoiser(bend(k), LEVELS, "sample") for name, k in NAMED.items()})
    loss: partial[Losses] = partial(consistency_loss, **setting(metric))
    whole = loss(nets, batch_of())["consistency"]
    halves = [loss(nets, batch_of(rows))["consistency"] for rows in (range(32), range(32, 64))]
    torch.testing.assert_close(whole, torch.stack(halves).mean())


# What the paper promises.


@pytest.mark.parametrize("w", [1.0, 3.0])
def test_one_step_approaches_the_end_of_the_ode(w: float) -> None:
    chosen = setting("l2", grid=10, guidance_scale=w)
    _, data = mixture.rows(4096, LEVELS, 1, (1.0, 1.0))
    (round_,) = Consistency(**chosen, ema_decay=0.9, sampling_ema_decay=0.95).rounds()
    nets = mixture.networks(round_, LEVELS)
    before = errors(nets["average"], w)
    mixture.train(round_, nets, {"data": data}, steps=300)
    after = errors(nets["average"], w)
    # Seen over four seeds: 0.32 to 0.36 from the noise, and 0.42 to 0.51 from half way.
    assert after[0] < 0.5 * before[0]
    assert after[1] < 0.65 * before[1]


@torch.no_grad()
def errors(student: Denoiser, w: float) -> list[float]:
    """How far the student's samples are from the end of the teacher's ODE, asked at its start and half way."""
    cond, uncond = mixture.conditions(torch.arange(1024) % 3)
    sigmas = papers(201, 0.05, 20.0).sigmas[:201].double()

    def slope(x: Tensor, sigma: Tensor) -> Tensor:
        return w * exact_eps(x, sigma, cond["modes"]) + (1 - w) * exact_eps(x, sigma, uncond["modes"])

    points = [sigmas[0] * numbers(1, 1024).double()]
    for sigma, following in itertools.pairwise(sigmas):
        points.append(heun(slope, points[-1], sigma, following))
    found = []
    for number in (0, 100):
        t = LEVELS.time_of(sigmas[number].expand(1024))
        alpha, _ = level(LEVELS, t)
        sample = consistency_function(student, (alpha * points[number]).float(), t, cond, 0.05)
        found.append(mixture.root_mean_square(sample, points[-1]))
    return found


def with_edms_time(unet: UNet2DModel) -> Denoiser:
    """A network as the paper's: told 250 log sigma and shown c_in x; EDM's preconditioning makes its answer x_0."""

    def net(x: Tensor, time: Tensor, cond: Cond) -> Tensor:
        sigma = (4 * time).exp()[:, None, None, None]
        c_in = (sigma**2 + 0.25).rsqrt()
        return 0.25 * c_in**2 * x + 0.5 * sigma * c_in * unet(c_in * x, 1000 * time).sample

    return Denoiser(net, EDM(), "sample")


def test_a_student_with_edms_time_is_sampled_by_the_stock_pipeline() -> None:
    torch.manual_seed(0)
    blocks = {"down_block_types": ("DownBlock2D",), "up_block_types": ("UpBlock2D",), "block_out_channels": (16,)}
    unet = UNet2DModel(8, 3, 3, layers_per_block=1, norm_num_groups=4, add_attention=False, **blocks)
    unet.conv_out.weight.data.normal_()
    student, noise = with_edms_time(unet), torch.randn(4, 3, 8, 8)

    chosen = setting("l2", sigma_min=0.002, sigma_max=80.0)
    nets = {"student": student, "target": student, "teacher": student}
    loss = consistency_loss(nets, Batch({"data": Rows({"x0": noise / 2})}, Draw(0, 0, 0, range(4))), **chosen)
    loss["consistency"].backward()
    assert all(weight.grad is not None and weight.grad.isfinite().all() for weight in unet.parameters())

    pipeline = ConsistencyModelPipeline(unet, CMStochasticIterativeScheduler(clip_denoised=False))
    pipeline.set_progress_bar_config(disable=True)
    for steps in (1, 2, 3):
        told = {"batch_size": 4, "num_inference_steps": steps, "generator": torch.Generator().manual_seed(1)}
        shown = cast(Tensor, pipeline(**told, latents=noise, output_type="pt", return_dict=False)[0])
        draws, x = torch.Generator().manual_seed(1), 80.0 * noise
        for place, sigma in enumerate(pipeline.scheduler.sigmas[:steps].tolist()):
            if place:
                x = x + (sigma**2 - 0.002**2) ** 0.5 * torch.randn(x.shape, generator=draws)
            with torch.no_grad():
                x = consistency_function(student, x, torch.full((4,), sigma), {}, 0.002)
        torch.testing.assert_close(shown, (x / 2 + 0.5).clamp(0, 1), rtol=1e-4, atol=1e-4)
        assert 0.2 < ((shown > 0) & (shown < 1)).float().mean()  # and not all of it cut off
