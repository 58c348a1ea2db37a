"""Laws of the diffusion algebra, against itself and against diffusers."""

from __future__ import annotations

from typing import get_args

import pytest
import torch
from diffusers import DDIMScheduler, FlowMatchEulerDiscreteScheduler
from torch import Tensor

from fewstep.methods.diffusion import (
    Cond,
    Denoiser,
    Estimate,
    Prediction,
    diffuse,
    guided,
    solve,
    step,
    target,
)
from fewstep.methods.schedules import EDM, DiscreteVP, RectifiedFlow, Schedule
from tests.support.cosine_schedule import CosineVP
from tests.support.renoise import renoise

BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
DDIM = DDIMScheduler(**BETAS, clip_sample=False, timestep_spacing="trailing", prediction_type="v_prediction")
ZERO_SNR = DDIMScheduler(**BETAS, rescale_betas_zero_snr=True)
SCHEDULES: dict[str, Schedule] = {
    "discrete": DiscreteVP(DDIM.alphas_cumprod),
    "zero-snr": DiscreteVP(ZERO_SNR.alphas_cumprod),
    "cosine": CosineVP(),
    "edm": EDM(),
    "flow": RectifiedFlow(shift=3.0),
}
U = torch.linspace(0.05, 0.95, 16)

every_schedule = pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)
every_prediction = pytest.mark.parametrize("prediction", get_args(Prediction))


def gaussians(seed: int, samples: int = 16) -> Tensor:
    return torch.randn(samples, 4, 3, 3, generator=torch.Generator().manual_seed(seed))


@every_schedule
@every_prediction
def test_solve_inverts_target(schedule: Schedule, prediction: Prediction) -> None:
    estimate, t = Estimate(gaussians(0), gaussians(1)), schedule.at(U)
    x_t = diffuse(schedule, *estimate, t)
    solved = solve(schedule, prediction, x_t, t, target(prediction, schedule, estimate, t))
    # float32; the worst conditioned case divides by alpha or sigma of about 0.01, or multiplies by sigma = 60.
    torch.testing.assert_close(solved.x0, estimate.x0, atol=2e-3, rtol=1e-3)
    torch.testing.assert_close(solved.eps, estimate.eps, atol=2e-3, rtol=1e-3)


@every_schedule
def test_at_runs_from_data_to_noise(schedule: Schedule) -> None:
    t = schedule.at(torch.linspace(0, 1, 51))
    ratio = schedule.sigma(t) / schedule.alpha(t).clamp_min(1e-12)
    assert (ratio.diff() > 0).all()
    assert schedule.sigma(t[:1]) < 0.01
    assert (schedule.alpha(t) >= 0).all()


@pytest.mark.parametrize("name", ["discrete", "zero-snr", "cosine"])
def test_variance_is_preserved(name: str) -> None:
    t = SCHEDULES[name].at(torch.linspace(0, 1, 101))
    torch.testing.assert_close(SCHEDULES[name].alpha(t) ** 2 + SCHEDULES[name].sigma(t) ** 2, torch.ones(101))


def test_the_table_is_read_at_its_indices_and_clean_data_comes_before_it() -> None:
    schedule = SCHEDULES["discrete"]
    t = torch.tensor([-1.0, 0.0, 499.0, 999.0])
    expected = torch.cat([torch.ones(1), DDIM.alphas_cumprod[[0, 499, 999]]])
    torch.testing.assert_close(schedule.alpha(t) ** 2, expected)


@every_prediction
def test_clean_data_is_its_own_estimate(prediction: Prediction) -> None:
    x = gaussians(0)
    estimate = solve(SCHEDULES["discrete"], prediction, x, torch.full((16,), -1.0), gaussians(1))
    assert torch.equal(estimate.x0, x) and torch.equal(estimate.eps, torch.zeros_like(x))


@pytest.mark.parametrize("scale", [1.0, 4.0])
def test_a_teacher_that_is_not_guided_is_asked_once(scale: float) -> None:
    rows: list[int] = []

    def net(x_t: Tensor, time: Tensor, cond: Cond) -> Tensor:
        rows.append(len(x_t))
        return x_t * cond["prompt"].view(-1, 1, 1, 1)

    denoiser, x_t, t = Denoiser(net, SCHEDULES["discrete"], "sample"), gaussians(0), torch.full((16,), 500.0)
    cond, uncond = ({"prompt": torch.full((16, 1), value)} for value in (3.0, 1.0))
    estimate = guided(denoiser, x_t, t, cond, uncond, scale)
    assert rows == [16 if scale == 1 else 32]
    torch.testing.assert_close(estimate.x0, (1 + 2 * scale) * x_t)


def test_gradients_at_zero_terminal_snr_are_finite() -> None:
    x_t = gaussians(0).requires_grad_()
    estimate = solve(SCHEDULES["zero-snr"], "v_prediction", x_t, torch.full((16,), 999.0), gaussians(1))
    (estimate.x0.sum() + estimate.eps.sum()).backward()
    assert x_t.grad is not None and x_t.grad.isfinite().all()


def test_the_trailing_grid_is_that_of_diffusers() -> None:
    DDIM.set_timesteps(50)
    grid = SCHEDULES["discrete"].at(torch.arange(50, 0, -1) / 50)
    torch.testing.assert_close(grid, DDIM.timesteps.float(), atol=1e-3, rtol=0)


def test_step_is_ddim_on_a_variance_preserving_schedule() -> None:
    schedule, x_t, v = SCHEDULES["discrete"], gaussians(0), gaussians(1)
    DDIM.set_timesteps(10)
    for t in DDIM.timesteps:
        time = t.float().expand(16)
        ours = step(schedule, solve(schedule, "v_prediction", x_t, time, v), time - 100)
        (theirs, *_) = DDIM.step(v, int(t), x_t, return_dict=False)
        # diffusers multiplies in float32 what we take from a float64 table
        torch.testing.assert_close(ours, theirs, atol=2e-5, rtol=1e-5)


def test_step_is_euler_on_rectified_flow() -> None:
    euler = FlowMatchEulerDiscreteScheduler(shift=3.0)
    euler.set_timesteps(10)
    schedule, x_t, flow = RectifiedFlow(), gaussians(0), gaussians(1)
    times = euler.timesteps
    assert isinstance(times, Tensor)
    for t, s in zip(times, [*times[1:], torch.zeros(())], strict=True):
        estimate = solve(schedule, "flow", x_t, t.expand(16) / 1000, flow)
        (theirs,) = euler.step(flow, t, x_t, return_dict=False)  # pyright: ignore[reportArgumentType]
        torch.testing.assert_close(step(schedule, estimate, s.expand(16) / 1000), theirs, atol=1e-5, rtol=1e-5)


def test_v_on_edms_schedule_is_minus_the_preconditioned_output() -> None:
    schedule, x_t, output = EDM(), gaussians(0), gaussians(1)
    sigma = schedule.at(U)
    c = sigma.view(-1, 1, 1, 1)
    preconditioned = x_t / (c**2 + 1) + c / (c**2 + 1).sqrt() * -output  # arXiv:2206.00364, Eq. 7, sigma_data = 1
    torch.testing.assert_close(
        solve(schedule, "v_prediction", x_t, sigma, output).x0, preconditioned, atol=1e-4, rtol=1e-4
    )


@every_schedule
def test_noising_in_two_stages_is_noising_once(schedule: Schedule) -> None:
    n = 20_000
    s, t = schedule.at(torch.full((n,), 0.3)), schedule.at(torch.full((n,), 0.7))
    noise = torch.randn(2, n, 1, generator=torch.Generator().manual_seed(0))
    x_t = renoise(schedule, diffuse(schedule, torch.ones(n, 1), noise[0], s), s, t, noise[1])
    # four standard errors of mean and deviation, relative to the noise
    sigma = schedule.sigma(t[:1])
    assert abs(x_t.mean() - schedule.alpha(t[:1])) < 4 * sigma / n**0.5
    assert abs(x_t.std() / sigma - 1) < 4 / (2 * n) ** 0.5


def test_guidance_of_one_is_none_and_more_extrapolates() -> None:
    def net(x_t: Tensor, time: Tensor, cond: Cond) -> Tensor:
        return x_t * 0 + cond["label"].view(-1, 1, 1, 1)

    denoiser = Denoiser(net, SCHEDULES["discrete"], "sample")
    x_t, t = gaussians(0, 2), torch.full((2,), 500.0)
    cond, uncond = {"label": torch.full((2,), 3.0)}, {"label": torch.ones(2)}
    estimate = guided(denoiser, x_t, t, cond, uncond, torch.tensor([1.0, 4.0]))
    torch.testing.assert_close(estimate.x0[:, 0, 0, 0], torch.tensor([3.0, 9.0]))
    torch.testing.assert_close(diffuse(denoiser.schedule, *estimate, t), x_t)  # x_0 and eps stay one x_t


def test_an_epsilon_network_at_zero_terminal_snr_is_refused_with_advice() -> None:
    with pytest.raises(ValueError, match="use a v_prediction or sample teacher"):
        Denoiser(lambda x_t, time, cond: x_t, SCHEDULES["zero-snr"], "epsilon")
