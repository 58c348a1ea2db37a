"""Every solver against ODEs whose solution is known: teachers of one Gaussian each, guided; and of a mixture.

The stochastic one against the law of the data at every time.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import cast

import pytest
import torch
from torch import Tensor

from fewstep.methods.diffusion import Cond, Denoiser, Estimate, Prediction, coefficients, expand, target
from fewstep.methods.schedules import RectifiedFlow, Schedule
from fewstep.orchestrator.sampling import analytic_dpm
from fewstep.orchestrator.sampling.guidance import GuidedDenoiser
from fewstep.orchestrator.sampling.ode import sample_path, unsupported_reason
from fewstep.orchestrator.sampling.schedules import schedule_of
from fewstep.orchestrator.sampling.solvers import ODE_SOLVERS, SOLVERS
from tests.support import mixture

STEPS = (1, 2, 4, 8)
SPREAD = 0.4
SAMPLES = 8


def config(prediction: str = "v_prediction", *, zero_snr: bool = False) -> Mapping[str, object]:
    """Of Stable Diffusion's scheduler, or of a flow's."""
    noise_levels = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
    flow = {"use_flow_sigmas": True, "prediction_type": "flow_prediction"} if prediction == "flow" else {}
    kind = {"num_train_timesteps": 1000, "rescale_betas_zero_snr": zero_snr, "prediction_type": prediction}
    return {**noise_levels, **kind, **flow}


class Gaussian:
    """The network of data ~ N(cond["mean"], SPREAD^2)."""

    def __init__(self, schedule: Schedule, prediction: str) -> None:
        self.schedule, self.prediction = schedule, cast(Prediction, prediction)
        self.told: list[Tensor] = []

    def __call__(self, x_t: Tensor, time: Tensor, cond: Cond) -> Tensor:
        self.told.append(time)
        t = time.float() / (1000 if isinstance(self.schedule, RectifiedFlow) else 1)
        alpha, sigma = coefficients(self.schedule, t, x_t)
        apart = (x_t - alpha * cond["mean"]) / (alpha**2 * SPREAD**2 + sigma**2)
        estimate = Estimate(cond["mean"] + alpha * SPREAD**2 * apart, sigma * apart)
        return target(self.prediction, self.schedule, estimate, t)


NOISE = torch.randn(SAMPLES, 2, generator=torch.Generator().manual_seed(0))
COND = {"mean": torch.linspace(-1.5, 1.5, 2 * SAMPLES).view(-1, 2)}
UNCOND = {"mean": torch.tensor([[0.5, -0.5]])}
SCALE = torch.linspace(1, 3, SAMPLES)


def gaussian(prediction: str, *, zero_snr: bool = False) -> tuple[Gaussian, GuidedDenoiser]:
    schedule = schedule_of(config(prediction, zero_snr=zero_snr))
    network = Gaussian(schedule, prediction)
    return network, GuidedDenoiser(Denoiser(network, schedule, network.prediction), COND, UNCOND, SCALE)


def exact(schedule: Schedule, times: Tensor) -> Tensor:
    """The states of the guided ODE, that of a Gaussian with the guided mean: as many spreads off as at the start."""
    mean = UNCOND["mean"] + expand(SCALE, NOISE) * (COND["mean"] - UNCOND["mean"])
    alpha, sigma = schedule.alpha(times)[:, None], schedule.sigma(times)[:, None]
    spread = (alpha**2 * SPREAD**2 + sigma**2).sqrt()
    return alpha * mean[:, None] + spread * ((NOISE - alpha[0] * mean) / spread[0])[:, None]


def cells() -> list[tuple[str, str, bool]]:
    """(solver, prediction, zero terminal SNR) wherever the solver can sample such a teacher."""
    return [
        (name, prediction, zero_snr)
        for name, solver in ODE_SOLVERS.items()
        for prediction in solver.predictions
        for zero_snr in ((False, True) if prediction in ("sample", "v_prediction") else (False,))
        if not (solver.divides_by_alpha and zero_snr)
    ]


@pytest.mark.parametrize(("name", "prediction", "zero_snr"), cells())
@pytest.mark.parametrize("steps", STEPS)
def test_every_solver_goes_from_noise_at_the_last_time_to_clean_data(
    name: str, prediction: str, zero_snr: bool, steps: int
) -> None:
    network, teacher = gaussian(prediction, zero_snr=zero_snr)
    path, times = sample_path(SOLVERS[name], config(prediction, zero_snr=zero_snr), teacher, NOISE, steps)
    assert path.shape == (SAMPLES, steps + 1, 2) and times.shape == (steps + 1,)
    torch.testing.assert_close(path[:, 0], NOISE)
    last = network.schedule.network_time(network.schedule.at(torch.ones(1)))
    # diffusers' flow sigmas begin at 0.999; between whole times a schedule is known to a few thousandths.
    torch.testing.assert_close(network.told[0][:1].float(), last, atol=1.0 if prediction == "flow" else 5e-3, rtol=0.0)
    assert times[-1] == network.schedule.at(torch.zeros(1)) and (times.diff() < 0).all()


@pytest.mark.parametrize(("name", "prediction", "zero_snr"), cells())
@pytest.mark.parametrize("steps", STEPS)
def test_evaluations_are_those_that_the_table_says(name: str, prediction: str, zero_snr: bool, steps: int) -> None:
    network, teacher = gaussian(prediction, zero_snr=zero_snr)
    sample_path(SOLVERS[name], config(prediction, zero_snr=zero_snr), teacher, NOISE, steps)
    asked = sum(len(time) for time in network.told)
    assert asked == teacher.evaluations
    planned = 2 * SAMPLES * SOLVERS[name].evaluations(steps)  # twice for guidance
    assert asked > planned if SOLVERS[name].is_adaptive else asked == planned


@pytest.mark.parametrize(("name", "prediction", "zero_snr"), cells())
def test_every_state_is_on_the_exact_path_at_its_time(name: str, prediction: str, zero_snr: bool) -> None:
    network, teacher = gaussian(prediction, zero_snr=zero_snr)
    path, times = sample_path(SOLVERS[name], config(prediction, zero_snr=zero_snr), teacher, NOISE, 200)
    # Of a path some units long. The worst are of first order, and diffusers' start where alpha is 2^-12 instead of 0.
    torch.testing.assert_close(path, exact(network.schedule, times), atol=0.04, rtol=0.0)


@pytest.mark.parametrize("zero_snr", [False, True])
@pytest.mark.parametrize(("name", "order"), [("ddim", 1), ("euler", 1), ("heun", 2)])
def test_half_the_step_is_the_error_to_the_solvers_order(name: str, order: int, zero_snr: bool) -> None:
    network, teacher = gaussian("v_prediction", zero_snr=zero_snr)

    def error(steps: int) -> Tensor:
        path, times = sample_path(SOLVERS[name], config(zero_snr=zero_snr), teacher, NOISE, steps)
        return (path - exact(network.schedule, times))[:, steps // 2].norm()  # before the one last step of Euler's

    assert 0.85 * 2**order < error(20) / error(40) < 1.15 * 2**order


def test_heun_on_the_karras_grid_is_of_second_order_to_the_end() -> None:
    network, teacher = gaussian("v_prediction")

    def error(steps: int) -> Tensor:
        path, times = sample_path(SOLVERS["heun-karras"], config(), teacher, NOISE, steps)
        return (path - exact(network.schedule, times))[:, -2].norm()

    assert 3.4 < error(20) / error(40) < 4.6


@pytest.mark.parametrize(("prediction", "zero_snr"), [("v_prediction", True), ("epsilon", False), ("flow", False)])
@pytest.mark.parametrize("tolerance", [1e-3, 1e-4, 1e-5])
def test_an_adaptive_path_is_exact_to_its_tolerance(prediction: str, zero_snr: bool, tolerance: float) -> None:
    network, teacher = gaussian(prediction, zero_snr=zero_snr)
    solver = replace(SOLVERS["rk45"], options={"tolerance": tolerance})
    path, times = sample_path(solver, config(prediction, zero_snr=zero_snr), teacher, NOISE, 4)
    # The tolerance is of a step, and steps add up. Clean data is an Euler step away from the end of the ODE.
    torch.testing.assert_close(path[:, :-1], exact(network.schedule, times)[:, :-1], atol=10 * tolerance, rtol=0.0)


def test_a_looser_tolerance_takes_fewer_evaluations() -> None:
    counts = []
    for tolerance in (1e-3, 1e-5):
        _, teacher = gaussian("v_prediction")
        sample_path(replace(SOLVERS["rk45"], options={"tolerance": tolerance}), config(), teacher, NOISE, 1)
        counts.append(teacher.evaluations)
    assert counts[0] < 0.8 * counts[1]


@pytest.mark.parametrize("name", ["rk45", "heun"])
def test_a_sample_does_not_depend_on_those_beside_it(name: str) -> None:
    schedule = mixture.schedule()
    cond, uncond = mixture.conditions(torch.arange(SAMPLES) % 3)

    def path(rows: slice, scale: Tensor) -> tuple[Tensor, int]:
        teacher = GuidedDenoiser(
            mixture.teacher(schedule), {"modes": cond["modes"][rows]}, {"modes": uncond["modes"][:1]}, scale
        )
        states, _ = sample_path(SOLVERS[name], config(zero_snr=True), teacher, NOISE[rows], 3)
        return states, teacher.evaluations

    together, evaluations = path(slice(None), SCALE + 1)
    alone = [path(slice(i, i + 1), SCALE[i : i + 1] + 1) for i in range(SAMPLES)]
    # Other batches of a matrix product differ in the last bits, and so then do steps.
    torch.testing.assert_close(torch.cat([states for states, _ in alone]), together, atol=2e-6, rtol=2e-6)
    counts = [count for _, count in alone]
    assert sum(counts) == evaluations and (name == "heun" or len(set(counts)) > 1)


def test_numbers_that_are_not_finite_end_an_adaptive_path() -> None:
    schedule = schedule_of(config())
    teacher = GuidedDenoiser(Denoiser(lambda x, time, cond: x / 0, schedule, "v_prediction"), COND, UNCOND, SCALE)
    path, _ = sample_path(SOLVERS["rk45"], config(), teacher, NOISE, 2)
    assert not path[:, -1].isfinite().any()


def test_solvers_that_are_the_same_on_paper_make_the_same_path() -> None:
    paths = []
    for name in ("ddim", "euler"):
        _, teacher = gaussian("v_prediction")
        paths.append(sample_path(SOLVERS[name], config("v_prediction"), teacher, NOISE, 8)[0])
    torch.testing.assert_close(paths[0], paths[1], atol=1e-4, rtol=0.0)


@pytest.mark.parametrize(
    ("name", "steps", "prediction", "zero_snr", "words"),
    [
        ("flow-match-euler", 4, "epsilon", False, "flow-match-euler cannot sample a epsilon teacher; .* ddim, .*unipc"),
        ("ddim", 4, "flow", False, "ddim cannot sample a flow teacher; choose one of dpm.., flow-match-euler"),
        ("pndm", 4, "v_prediction", True, "pndm divides by alpha, which is 0 .*; choose heun"),
        (
            "ddim",
            6,
            "v_prediction",
            False,
            "ddim takes a number of steps that divides .* 1000 times, not 6; or .*euler",
        ),
        ("unipc", 61, "v_prediction", False, "diffusers' UniPCMultistepScheduler gets 61 steps wrong"),
    ],
)
def test_a_solver_that_cannot_is_refused_with_one_that_can(
    name: str, steps: int, prediction: str, zero_snr: bool, words: str
) -> None:
    assert re.match(words, unsupported_reason(name, steps, prediction, config(prediction, zero_snr=zero_snr)))


def test_as_many_steps_as_the_evaluations_are_enough_for() -> None:
    counts = (1, 2, 4, 6, 8)
    within = {name: [SOLVERS[name].steps_within(count, 1000) for count in counts] for name in ("euler", "heun", "pndm")}
    assert within == {"euler": [1, 2, 4, 6, 8], "heun": [1, 1, 2, 3, 4], "pndm": [1, 1, 2, 5, 5]}


MANY = 20_000


def of_one_law(prediction: str, *, zero_snr: bool) -> GuidedDenoiser:
    """Many samples of the first condition."""
    schedule = schedule_of(config(prediction, zero_snr=zero_snr))
    network = Gaussian(schedule, prediction)
    cond = {"mean": COND["mean"][:1].expand(MANY, -1)}
    return GuidedDenoiser(Denoiser(network, schedule, network.prediction), cond, UNCOND, torch.ones(MANY))


def drawn(seed: int) -> Tensor:
    return torch.randn(MANY, 2, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(
    ("prediction", "zero_snr"), [("epsilon", False), ("v_prediction", False), ("v_prediction", True), ("flow", False)]
)
def test_analytic_dpm_keeps_the_law_of_the_data_at_every_time_however_few_its_steps(
    prediction: str, zero_snr: bool
) -> None:
    teacher = of_one_law(prediction, zero_snr=zero_snr)
    schedule, mean = teacher.schedule, COND["mean"][:1]
    variances = analytic_dpm.calibrate(teacher, mean + SPREAD * drawn(1), drawn(2))
    t = schedule.at(torch.arange(analytic_dpm.GRID + 1) / analytic_dpm.GRID)
    alpha, sigma = schedule.alpha(t), schedule.sigma(t)
    torch.testing.assert_close(variances, SPREAD**2 * sigma**2 / (alpha**2 * SPREAD**2 + sigma**2), rtol=0.03, atol=0.0)
    generators = [torch.Generator().manual_seed(i) for i in range(MANY)]
    options = {"variances": variances.tolist(), "generators": generators}
    solver = replace(SOLVERS["analytic-dpm"], options=options)
    for steps in STEPS:
        path, times = sample_path(solver, config(prediction, zero_snr=zero_snr), teacher, drawn(3), steps)
        alpha, sigma = schedule.alpha(times), schedule.sigma(times)
        spread = (alpha**2 * SPREAD**2 + sigma**2).sqrt()
        # The last step is its mean, which leaves out what the state before it does not know.
        spread[-1] = SPREAD * (1 - sigma[-2] ** 2 / spread[-2] ** 2).clamp_min(0).sqrt()
        # It begins with unit noise, which without zero terminal SNR is a few hundredths off the law of the last time.
        torch.testing.assert_close(path.mean(0)[1:], (alpha[:, None] * mean)[1:], atol=0.12, rtol=0.0)
        torch.testing.assert_close(path.std(0)[1:].mean(1), spread[1:], atol=0.015, rtol=0.0)


def test_analytic_dpms_variance_is_the_one_that_the_papers_score_norm_gives() -> None:
    noise_levels = mixture.schedule()
    exact_teacher, rows = mixture.teacher(noise_levels), mixture.unconditional(MANY, seed=0)
    x0, noise = rows.x0, drawn(4)
    teacher = GuidedDenoiser(exact_teacher, rows.cond, rows.uncond, torch.ones(MANY))
    found = analytic_dpm.calibrate(teacher, x0, noise)
    for place in (10, 20, 30):
        t = noise_levels.at(torch.tensor([place / analytic_dpm.GRID]))
        alpha, sigma = noise_levels.alpha(t), noise_levels.sigma(t)
        score = -teacher(alpha * x0 + sigma * noise, t.expand(MANY)).eps / sigma
        gamma = score.square().mean()
        assert found[place] == pytest.approx(((sigma / alpha) ** 2 * (1 - sigma**2 * gamma)).item(), rel=0.05)
