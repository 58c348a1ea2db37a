"""Guided distillation on a mixture whose guided denoiser is known."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable
from functools import partial
from typing import Any, Literal, get_args

import pytest
import torch
from diffusers import DDIMScheduler
from torch import Tensor

from fewstep.methods.base import Losses, Trained
from fewstep.methods.batch import Batch, Draw, Rows
from fewstep.methods.diffusion import Cond, Denoiser, diffuse, guided, with_guidance
from fewstep.methods.guided import Guided, guided_progressive_loss, matching_loss
from fewstep.methods.progressive import Weighting, progressive_loss
from fewstep.methods.schedules import DiscreteVP
from tests.support import mixture

LEVELS = mixture.schedule()  # zero terminal SNR
SD = DiscreteVP(DDIMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear").alphas_cumprod)
SCALES = (1.0, 4.0)
WEIGHTINGS: tuple[Weighting, ...] = get_args(Weighting)

Answer = Callable[[Tensor, Tensor, Cond], Tensor]

every_prediction = pytest.mark.parametrize("prediction", ["epsilon", "sample", "v_prediction"])


def numbers(seed: int, samples: int = 64) -> Tensor:
    return torch.randn(samples, 2, generator=torch.Generator().manual_seed(seed))


def batch_of(rows: range = range(64)) -> Batch:
    data = Rows({"x0": numbers(0, rows.stop)}, *mixture.conditions(torch.arange(rows.stop) % 3))
    return Batch({"data": data.take(slice(rows.start, rows.stop))}, Draw(0, 0, 0, rows))


def linear(k: float) -> Answer:
    """Some answer, smooth in all that a network is told, of w too."""

    def net(x_t: Tensor, time: Tensor, cond: Cond) -> Tensor:
        w = cond.get("guidance_scale", torch.ones(len(x_t)))
        return k * x_t - (time / 900 + w / 3)[:, None] + cond["modes"][:, :2]

    return net


def always(answer: Tensor) -> Answer:
    return lambda x_t, time, cond: answer


def recorded(net: Answer, seen: list[Any]) -> Answer:
    """The same network, which writes down what it is asked."""

    def recording(x_t: Tensor, time: Tensor, cond: Cond) -> Tensor:
        seen.append((x_t, time, cond))
        return net(x_t, time, cond)

    return recording


def levels_at(levels: DiscreteVP, t: Tensor) -> tuple[Tensor, Tensor]:
    """alpha and sigma in float64, interpolated without the code under test."""
    table = torch.cat([torch.ones(1, dtype=torch.float64), levels.alphas_cumprod.double()])
    low = (t.double() + 1).floor().long().clamp(max=len(table) - 2)
    squared = table[low] + (t.double() + 1 - low) * (table[low + 1] - table[low])
    return squared.sqrt()[:, None], (1 - squared).sqrt()[:, None]


# Matching.


def exact_x0(x_t: Tensor, t: Tensor, modes: Tensor) -> Tensor:
    """Tweedie's formula (x_t + sigma^2 grad log p) / alpha on the mixture's density, in float64."""
    alpha, sigma = levels_at(LEVELS, t)
    x = x_t.double().requires_grad_()
    apart = (x[:, None] - alpha[:, None] * mixture.MEANS).square().sum(-1)
    variance = (alpha * mixture.SPREAD) ** 2 + sigma**2
    (score,) = torch.autograd.grad((modes.double().log() - apart / (2 * variance)).logsumexp(1).sum(), x)
    return (x + sigma**2 * score).detach() / alpha


@pytest.mark.parametrize("weighting", WEIGHTINGS)
@pytest.mark.parametrize("scales", [(1.0, 1.0), (3.0, 3.0), (1.0, 8.0)])
def test_before_training_the_loss_is_what_guidance_adds(weighting: Weighting, scales: tuple[float, float]) -> None:
    (round_, *_) = Guided(guidance_scale=scales).rounds()
    nets, seen = mixture.networks(round_, LEVELS), []
    nets["student"] = Denoiser(recorded(nets["student"].net, seen), LEVELS, "v_prediction")
    found = matching_loss(nets, batch_of(), guidance_scale=scales, weighting=weighting)
    ((x_t, t, cond),) = seen
    assert set(found) == {"x0"} and t.min() > 0  # below 0, which is clean data's time, the network is told 0
    w, uncond = cond["guidance_scale"].double()[:, None], batch_of()["data"].uncond
    added = (w - 1) * (exact_x0(x_t, t, cond["modes"]) - exact_x0(x_t, t, uncond["modes"]))
    alpha, sigma = levels_at(LEVELS, t)
    mse_x, mse_eps = added.square().mean(1), (alpha / sigma * added).square().mean(1)
    expected = {
        "truncated_snr": torch.maximum(mse_x, mse_eps),
        "snr_plus_one": mse_x + mse_eps,
        "snr": mse_eps,
        "constant": mse_x,
    }[weighting]
    # float32, whose error the weight multiplies by an SNR of up to a thousand
    torch.testing.assert_close(found["x0"].double(), expected.mean(), rtol=1e-3, atol=1e-8)
    assert (found["x0"] > 0.01) == (scales != (1.0, 1.0))


@every_prediction
def test_the_student_has_to_answer_as_the_guided_teacher(
    prediction: Literal["epsilon", "sample", "v_prediction"],
) -> None:
    seen: list[Any] = []
    nets = {
        "teacher": Denoiser(linear(0.3), SD, prediction),
        "student": Denoiser(recorded(linear(-0.4), seen), SD, prediction),
    }
    before = matching_loss(nets, batch_of(), guidance_scale=(2.0, 6.0), weighting="constant")["x0"]
    ((x_t, t, cond),) = seen
    alpha, sigma = levels_at(SD, t)

    def clean(modes: Tensor) -> Tensor:
        output = linear(0.3)(x_t.double(), t.double(), {"modes": modes.double()})
        return {
            "epsilon": (x_t - sigma * output) / alpha,
            "sample": output,
            "v_prediction": alpha * x_t - sigma * output,
        }[prediction]

    w = cond["guidance_scale"].double()[:, None]
    wanted = w * clean(cond["modes"]) + (1 - w) * clean(batch_of()["data"].uncond["modes"])
    right = {**nets, "student": Denoiser(always(wanted), SD, "sample")}
    after = matching_loss(right, batch_of(), guidance_scale=(2.0, 6.0), weighting="constant")["x0"]
    assert before > 0.1
    assert after < 1e-8 * before


def seen_in_matching(samples: int) -> tuple[list[Any], list[Any]]:
    """What the student and the teacher are asked."""
    by_student, by_teacher = [], []
    nets = {
        "teacher": Denoiser(recorded(linear(0.3), by_teacher), LEVELS, "v_prediction"),
        "student": Denoiser(recorded(linear(-0.4), by_student), LEVELS, "v_prediction"),
    }
    matching_loss(nets, batch_of(range(samples)), guidance_scale=(2.0, 6.0), weighting="constant")
    return by_student, by_teacher


def test_the_student_alone_is_told_w_and_the_teacher_alone_both_conditions() -> None:
    ((x_t, t, told),), ((both_x, both_t, both),) = seen_in_matching(64)
    data = batch_of()["data"]
    assert set(told) == {"modes", "guidance_scale"} and set(both) == {"modes"}
    assert torch.equal(told["modes"], data.cond["modes"])
    assert torch.equal(both["modes"], torch.cat([data.cond["modes"], data.uncond["modes"]]))
    assert torch.equal(both_x, torch.cat([x_t, x_t])) and torch.equal(both_t, torch.cat([t, t]))


def is_uniform(x: Tensor, low: float, high: float) -> bool:
    """Of four standard errors in the mean, and nearly filled."""
    off, width = (x.mean() - (low + high) / 2).abs(), high - low
    edge = 10 * width / len(x)
    is_filled = x.min() < low + edge and x.max() > high - edge
    return bool(low <= x.min() and x.max() <= high and is_filled and off < 4 * width / (12 * len(x)) ** 0.5)


def test_times_are_continuous_and_w_is_drawn_for_each_sample() -> None:
    ((x_t, t, told),), _ = seen_in_matching(4096)
    w = told["guidance_scale"]
    assert is_uniform(t, 0, 999) and is_uniform(w, 2, 6)
    assert t.frac().gt(0).float().mean() > 0.9 and len(w.unique()) > 4000
    alpha, sigma = (level.float() for level in levels_at(LEVELS, t))
    noise = ((x_t - alpha * numbers(0, 4096)) / sigma)[t > 1]
    unrelated = torch.stack([t[t > 1], w[t > 1], *noise.T, *numbers(0, 4096)[t > 1].T]).corrcoef()
    assert (unrelated - torch.eye(6)).abs().max() < 4 / 4096**0.5  # four standard errors
    assert (noise.T.cov() - torch.eye(2)).abs().max() < 4 * (2 / 4096) ** 0.5


@pytest.mark.parametrize("lowest", [True, False])
@pytest.mark.parametrize("weighting", WEIGHTINGS)
def test_no_draw_of_the_time_is_nan(weighting: Weighting, lowest: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    # torch.rand is 0 once in 2^24 draws, and a weight of infinity times an error of 0 would end a run.
    part = 0 if lowest else 1 - 2**-24
    monkeypatch.setattr(Draw, "uniform", lambda self, low=0.0, high=1.0: torch.full((64,), low + part * (high - low)))
    (round_, *_) = Guided().rounds()
    nets = mixture.networks(round_, LEVELS)
    loss = matching_loss(nets, batch_of(), guidance_scale=SCALES, weighting=weighting)["x0"]
    loss.backward()
    assert loss.isfinite()
    assert all(weight.grad is not None and weight.grad.isfinite().all() for weight in mixture.weights(nets["student"]))


# Fewer steps.


@pytest.mark.parametrize("steps", [1, 4])
def test_the_halving_student_has_to_believe_what_its_teacher_does_for_the_same_w(steps: int) -> None:
    """A teacher that knows one point for each w walks straight to it, in one step as in two."""

    def point(x_t: Tensor, time: Tensor, cond: Cond) -> Tensor:
        return cond.get("guidance_scale", torch.ones(len(x_t)))[:, None] * torch.tensor([1.0, -2.0])

    def loss(student: Answer) -> Tensor:
        nets = {"teacher": Denoiser(point, LEVELS, "sample"), "student": Denoiser(student, LEVELS, "sample")}
        weighted = {"guidance_scale": (2.0, 6.0), "weighting": "constant"}
        return guided_progressive_loss(nets, batch_of(), steps=steps, **weighted)["x0"]

    assert loss(point) < 1e-10
    torch.testing.assert_close(loss(lambda *asked: point(*asked) + 1), torch.ones(()), rtol=1e-4, atol=0)


def seen_in_halving(samples: int) -> tuple[list[Any], list[Any]]:
    """What the student and the teacher are asked; there is no null condition to ask for."""
    by_student, by_teacher = [], []
    nets = {
        "teacher": Denoiser(recorded(linear(0.3), by_teacher), LEVELS, "v_prediction"),
        "student": Denoiser(recorded(linear(-0.4), by_student), LEVELS, "v_prediction"),
    }
    batch = batch_of(range(samples))
    batch = Batch({"data": Rows(batch["data"].columns, batch["data"].cond)}, batch.draw)
    guided_progressive_loss(nets, batch, steps=4, guidance_scale=(2.0, 6.0), weighting="constant")
    return by_student, by_teacher


def test_one_w_per_sample_is_an_input_of_student_and_teacher_alike() -> None:
    ((_, _, told),), teachers = seen_in_halving(4096)
    assert len(teachers) == 2
    for _, _, cond in teachers:
        assert set(cond) == set(told) and all(torch.equal(cond[name], told[name]) for name in told)
    assert torch.equal(told["modes"], batch_of(range(4096))["data"].cond["modes"])
    assert is_uniform(told["guidance_scale"], 2, 6) and len(told["guidance_scale"].unique()) > 4000


def two_networks() -> dict[str, Denoiser]:
    return {name: Denoiser(linear(k), LEVELS, "v_prediction") for name, k in (("teacher", 0.3), ("student", -0.4))}


@pytest.mark.parametrize("weighting", WEIGHTINGS)
def test_halving_is_progressive_distillation_with_w_in_the_condition(weighting: Weighting) -> None:
    found = guided_progressive_loss(two_networks(), batch_of(), steps=4, guidance_scale=(2.0, 6.0), weighting=weighting)
    draw, data = Draw(0, 0, 0, range(64)), batch_of()["data"]
    told = Batch({"data": Rows(data.columns, with_guidance(data.cond, draw.uniform(2.0, 6.0)))}, draw)
    assert found == progressive_loss(two_networks(), told, steps=4, weighting=weighting, guidance_scale=1.0)


@pytest.mark.parametrize("weighting", WEIGHTINGS)
def test_the_rounds_match_and_then_halve(weighting: Weighting) -> None:
    method = Guided(teacher_steps=8, student_steps=1, guidance_scale=(2.0, 6.0), weighting=weighting)
    drawn = {"guidance_scale": (2.0, 6.0), "weighting": weighting}
    expected = [
        partial(matching_loss, **drawn),
        *(partial(guided_progressive_loss, steps=n, **drawn) for n in (4, 2, 1)),
    ]
    for round_, loss in zip(method.rounds(), expected, strict=True):
        assert round_.nets == {"student": Trained(guidance_input=True)} and round_.online
        assert round_.updates[0].loss(two_networks(), batch_of()) == loss(two_networks(), batch_of())


def test_a_stochastic_students_step_is_two_of_its_teachers_of_its_own_length() -> None:
    samples, asked, by_student = 256, list[Any](), list[Any]()
    nets = {
        "teacher": Denoiser(recorded(linear(0.3), asked), LEVELS, "v_prediction"),
        "student": Denoiser(recorded(linear(-0.4), by_student), LEVELS, "v_prediction"),
    }
    chosen = {"steps": 4, "guidance_scale": SCALES, "weighting": "constant", "stochastic": True}
    before = guided_progressive_loss(nets, batch_of(range(samples)), **chosen)["x0"]
    ((z_t, t, cond),), (_, (_, middle, _)) = by_student, asked
    u, half = (t + 1) / 1000, (t + 1) / 1000 - (middle + 1) / 1000
    assert {round(4 * float(place)) for place in u} == {1, 2, 3, 4}
    # The last step has only itself to go.
    torch.testing.assert_close(half, torch.where(u > 0.3, 0.25, 0.125), rtol=0, atol=1e-6)

    z, times = z_t.double(), [1000 * (u - n * half) - 1 for n in range(3)]
    for now, following in itertools.pairwise(times):
        alpha, sigma = levels_at(LEVELS, now)
        v = linear(0.3)(z, now.double(), {name: value.double() for name, value in cond.items()})
        x0, eps = alpha * z - sigma * v, sigma * z + alpha * v
        alpha, sigma = levels_at(LEVELS, following)
        z = alpha * x0 + sigma * eps
    (alpha_t, sigma_t), (alpha_s, sigma_s) = levels_at(LEVELS, times[0]), levels_at(LEVELS, times[2])
    wanted = (z - sigma_s / sigma_t * z_t) / (alpha_s - sigma_s / sigma_t * alpha_t)
    right = {**nets, "student": Denoiser(always(wanted), LEVELS, "sample")}
    assert before > 0.1
    assert guided_progressive_loss(right, batch_of(range(samples)), **chosen)["x0"] < 1e-6 * before


# Both losses.

both_losses = pytest.mark.parametrize(
    "loss",
    [
        partial(matching_loss, guidance_scale=SCALES, weighting="truncated_snr"),
        partial(guided_progressive_loss, steps=4, guidance_scale=SCALES, weighting="truncated_snr"),
    ],
    ids=["matching", "halving"],
)


@both_losses
def test_only_the_student_gets_gradients(loss: partial[Losses]) -> None:
    (round_, *_) = Guided().rounds()
    nets = mixture.networks(round_, LEVELS)
    nets["teacher"] = Denoiser(mixture.StudentNetwork(LEVELS), LEVELS, "v_prediction")
    loss(nets, batch_of())["x0"].backward()
    assert mixture.touched(nets) == {"student"}


@both_losses
def test_the_loss_does_not_depend_on_how_the_batch_is_split(loss: partial[Losses]) -> None:
    whole = loss(two_networks(), batch_of())["x0"]
    halves = [loss(two_networks(), batch_of(rows))["x0"] for rows in (range(32), range(32, 64))]
    torch.testing.assert_close(whole, torch.stack(halves).mean())


# What the paper promises.

ASKED = (1.0, 2.0, 3.0, 4.0)


def test_one_network_answers_for_every_w_and_then_in_half_the_steps() -> None:
    _, data = mixture.rows(4096, LEVELS, 1, (1.0, 1.0))
    matching, halving = Guided(teacher_steps=4, student_steps=2, guidance_scale=SCALES).rounds()
    nets = mixture.networks(matching, LEVELS)
    base = nets["teacher"]
    start = answers(nets["student"], base)
    mixture.train(matching, nets, {"data": data}, steps=300)
    matched = answers(nets["student"], base)
    # Seen over four seeds: 0.22 to 0.25 of what guidance adds, and for w = 1, where it adds nothing, 0.28 to 0.29 of
    # what w = 2 adds.
    assert all(matched[w] < 0.45 * max(start[w], start[2.0]) for w in ASKED)

    nets["teacher"] = Denoiser(copy.deepcopy(mixture.module(nets["student"])), LEVELS, "v_prediction")
    mixture.train(halving, nets, {"data": data}, steps=300)
    for w in ASKED:
        four, two = (told(nets["teacher"], steps, w) for steps in (4, 2))
        # Seen: 0.25 to 0.55.
        assert mixture.root_mean_square(told(nets["student"], 2, w), four) < 0.75 * mixture.root_mean_square(two, four)
    from_four = [
        sum(mixture.root_mean_square(ends(w), composed(base, 4, w)) for w in ASKED)
        for ends in (partial(told, nets["student"], 2), partial(composed, base, 2))
    ]
    # Seen: 0.53 to 0.57, matching and halving together.
    assert from_four[0] < 0.75 * from_four[1]


@torch.no_grad()
def answers(student: Denoiser, teacher: Denoiser) -> dict[float, float]:
    """How far the student's x_0 is from the guided teacher's, by w."""
    cond, uncond = mixture.conditions(torch.arange(1024) % 3)
    t = LEVELS.at(torch.linspace(0.1, 1, 1024))
    generator = torch.Generator().manual_seed(1)
    modes = torch.multinomial(cond["modes"], 1, generator=generator)[:, 0]
    x_t = diffuse(LEVELS, mixture.MEANS[modes] + mixture.SPREAD * numbers(1, 1024), numbers(2, 1024), t)
    found = {}
    for w in ASKED:
        scale = torch.full((1024,), w)
        wanted = guided(teacher, x_t, t, cond, uncond, scale).x0
        found[w] = mixture.root_mean_square(student(x_t, t, with_guidance(cond, scale)).x0, wanted)
    return found


def told(denoiser: Denoiser, steps: int, w: float) -> Tensor:
    """Where DDIM leads a network that takes w as an input."""
    cond, _ = mixture.conditions(torch.arange(1024) % 3)
    cond = with_guidance(cond, torch.full((1024,), w))
    return mixture.solve(denoiser, numbers(3, 1024), cond, cond, torch.ones(1024), steps)[0][:, -1]


def composed(denoiser: Denoiser, steps: int, w: float) -> Tensor:
    """Where DDIM leads with guidance from two answers."""
    cond, uncond = mixture.conditions(torch.arange(1024) % 3)
    return mixture.solve(denoiser, numbers(3, 1024), cond, uncond, torch.full((1024,), w), steps)[0][:, -1]
