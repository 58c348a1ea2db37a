"""Distribution matching distillation on a mixture whose score is known."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import pytest
import torch
from diffusers import DDIMScheduler, LCMScheduler
from torch import Tensor, nn
from torch.nn import functional as F

from fewstep.methods.base import Losses, Trained
from fewstep.methods.batch import Batch, Draw, Rows
from fewstep.methods.diffusion import Cond, Denoiser, diffuse
from fewstep.methods.distribution_matching import DistributionMatching, fake_score_loss, rollout, student_loss
from fewstep.methods.losses import l2
from fewstep.methods.schedules import DiscreteVP
from tests.support import mixture

LEVELS = mixture.schedule()
SD = DiscreteVP(DDIMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear").alphas_cumprod)
PREDICTIONS = ("epsilon", "sample", "v_prediction")

every_prediction = pytest.mark.parametrize("prediction", PREDICTIONS)


def numbers(seed: int, samples: int = 64) -> Tensor:
    return torch.randn(samples, 2, generator=torch.Generator().manual_seed(seed))


def sources_of(samples: int = 64) -> dict[str, Rows]:
    prompts, pairs, data = (mixture.conditions((torch.arange(samples) + shift) % 3) for shift in range(3))
    return {
        "prompts": Rows({"blank": torch.zeros(samples, 2)}, *prompts),
        "pairs": Rows({"noise": numbers(0, samples), "x0": numbers(1, samples)}, *pairs),
        "data": Rows({"x0": numbers(2, samples)}, *data),
    }


def batch_of(rows: range = range(64)) -> Batch:
    taken = {name: source.take(slice(rows.start, rows.stop)) for name, source in sources_of().items()}
    return Batch(taken, Draw(0, 0, 0, rows))


def linear(k: float, c: float) -> Callable[[Tensor, Tensor, Cond], Tensor]:
    """Some answer, smooth in all that a network is told."""
    return lambda x_t, time, cond: k * x_t + (time / 900)[:, None] + c * cond["modes"][:, :2]


def always(sample: Tensor) -> Denoiser:
    """A student that answers with these numbers, to differentiate by."""
    return Denoiser(lambda x_t, time, cond: sample, SD, "sample")


def levels_at(t: Tensor) -> tuple[Tensor, Tensor]:
    """alpha and sigma in float64, interpolated without the code under test."""
    table = torch.cat([torch.ones(1, dtype=torch.float64), SD.alphas_cumprod.double()])
    low = (t.double() + 1).floor().long().clamp(max=len(table) - 2)
    squared = table[low] + (t.double() + 1 - low) * (table[low + 1] - table[low])
    return squared.sqrt()[:, None], (1 - squared).sqrt()[:, None]


def with_rollout(nets: dict[str, Any], batch: Batch, student_steps: int = 1) -> Batch:
    """The batch with what the student makes once a step."""
    (round_,) = DistributionMatching(student_steps=student_steps, regression_weight=0.0).rounds()
    return mixture.rolled_out(round_, nets, batch)


def of_student(nets: dict[str, Any], batch: Batch, **weights: float) -> Losses:
    return student_loss(nets, with_rollout(nets, batch), **weights)  # pyright: ignore[reportArgumentType]


def of_fake_score(nets: dict[str, Any], batch: Batch, *, is_adversarial: bool = False) -> Losses:
    return fake_score_loss(nets, with_rollout(nets, batch), is_adversarial=is_adversarial)  # pyright: ignore


def rollouts_draw(rows: range = range(64)) -> Draw:
    """What the student starts from comes from here: two updates have theirs before."""
    return Draw(0, 0, 2, rows)


# The matching gradient.


def matching(nets: dict[str, Any], batch: Batch, guidance_scale: float) -> Tensor:
    return of_student(nets, batch, guidance_scale=guidance_scale, regression_weight=0.0, adversarial_weight=0.0)[
        "matching"
    ]


@pytest.mark.parametrize("w", [1.0, 3.0])
@every_prediction
def test_the_gradient_is_the_difference_of_scores_in_units_of_each_samples_own_error(
    prediction: Literal["epsilon", "sample", "v_prediction"], w: float
) -> None:
    size = torch.ones(64, 1)
    size[5] = 100  # a normaliser of the whole batch would drown the others
    x0 = (size * numbers(7)).requires_grad_()
    nets = {
        "student": always(x0),
        "teacher": Denoiser(linear(0.3, 1.0), SD, prediction),
        "fake_score": Denoiser(linear(-0.2, 0.5), SD, prediction),
    }
    (found,) = torch.autograd.grad(matching(nets, batch_of(), w), x0)

    draw, prompts = Draw(0, 0, 0, range(64)), sources_of()["prompts"]
    t = draw.uniform(0.02, 0.98) * 1000 - 1
    alpha, sigma = levels_at(t)
    x_t = alpha * x0.detach().double() + sigma * draw.normal(x0).double()

    def clean(k: float, c: float, cond: Cond) -> Tensor:
        output = k * x_t + (t / 900)[:, None] + c * cond["modes"][:, :2].double()
        solutions = {
            "epsilon": (x_t - sigma * output) / alpha,
            "sample": output,
            "v_prediction": alpha * x_t - sigma * output,
        }
        return solutions[prediction]

    told, alone = clean(0.3, 1.0, prompts.cond), clean(0.3, 1.0, prompts.uncond)
    real, fake = w * told + (1 - w) * alone, clean(-0.2, 0.5, prompts.cond)
    own_error = (x0.detach() - real).abs().mean(1, keepdim=True)
    # float32; an epsilon network's answer is divided by alpha, of 0.08 and more
    torch.testing.assert_close(found.double() * x0.numel(), (fake - real) / own_error, rtol=1e-3, atol=1e-3)


def test_each_samples_gradient_is_its_own() -> None:
    """A sample that grows leaves the gradient of the others where it was."""
    found = []
    for size in (1.0, 100.0):
        x0 = torch.cat([size * numbers(7)[:1], numbers(7)[1:]]).requires_grad_()
        nets = {
            "student": always(x0),
            "teacher": Denoiser(linear(0.3, 1.0), SD, "v_prediction"),
            "fake_score": Denoiser(linear(-0.2, 0.5), SD, "v_prediction"),
        }
        found += torch.autograd.grad(matching(nets, batch_of(), 3.0), x0)
    torch.testing.assert_close(found[0][1:], found[1][1:], rtol=0, atol=0)


def test_there_is_nothing_to_match_where_the_fake_score_is_the_teacher() -> None:
    x0 = numbers(7).requires_grad_()
    net = Denoiser(linear(0.3, 1.0), SD, "v_prediction")
    nets = {"student": always(x0), "teacher": net, "fake_score": net}
    (found,) = torch.autograd.grad(matching(nets, batch_of(), 1.0), x0)
    assert found.abs().max() < 1e-5 / x0.numel()


def test_descent_leads_from_the_fake_to_the_real() -> None:
    """For two unit Gaussians, whose scores are known at every noise level, straight from one mean to the other."""

    def gaussian(mean: Tensor) -> Denoiser:
        def net(x_t: Tensor, time: Tensor, cond: Cond) -> Tensor:
            alpha, _ = (level.float() for level in levels_at(time))
            return mean + alpha * (x_t - alpha * mean)

        return Denoiser(net, SD, "sample")

    here, there = torch.tensor([2.0, 0.0]), torch.tensor([-1.0, 1.5])
    x0 = (here + numbers(7)).requires_grad_()
    nets = {"student": always(x0), "teacher": gaussian(there), "fake_score": gaussian(here)}
    (found,) = torch.autograd.grad(matching(nets, batch_of(), 1.0), x0)
    towards = (there - here) / (there - here).norm()
    torch.testing.assert_close(-found / found.norm(dim=1, keepdim=True), towards.expand(64, 2), atol=1e-3, rtol=0)


def test_a_sample_that_is_the_teachers_own_answer_gets_no_gradient_rather_than_nan() -> None:
    wanted = numbers(8)
    x0 = torch.cat([wanted[:3], numbers(7)[3:]]).requires_grad_()
    is_equal = torch.arange(64)[:, None] < 2  # the fake score differs for the third: a division by zero alone
    nets = {
        "student": always(x0),
        "teacher": Denoiser(lambda x_t, time, cond: torch.cat([wanted] * (len(x_t) // 64)), SD, "sample"),
        "fake_score": Denoiser(lambda x_t, time, cond: torch.where(is_equal, wanted, wanted + 1), SD, "sample"),
    }
    loss = matching(nets, batch_of(), 3.0)
    (found,) = torch.autograd.grad(loss, x0)
    assert loss.isfinite() and found.isfinite().all()
    assert found[:3].count_nonzero() == 0 and found[3:].count_nonzero() == 2 * 61


def test_times_of_the_matching_keep_away_from_both_ends() -> None:
    seen: list[Tensor] = []

    def net(x_t: Tensor, time: Tensor, cond: Cond) -> Tensor:
        seen.append(time)
        return x_t

    samples = 4096
    batch = Batch(sources_of(samples), Draw(0, 0, 0, range(samples)))
    nets = {"student": always(numbers(7, samples)), "teacher": Denoiser(net, SD, "sample")}
    matching({**nets, "fake_score": nets["teacher"]}, batch, 3.0)
    both, once = seen
    assert torch.equal(both, torch.cat([once, once]))
    assert 19 <= once.min() < 25 and 973 < once.max() <= 979


def test_the_student_takes_its_one_step_from_pure_noise() -> None:
    seen: list[Tensor] = []

    def net(x_t: Tensor, time: Tensor, cond: Cond) -> Tensor:
        seen.extend((x_t, time))
        return x_t

    other = Denoiser(linear(0.3, 1.0), SD, "sample")
    nets = {"student": Denoiser(net, SD, "sample"), "teacher": other, "fake_score": other}
    matching(nets, batch_of(), 3.0)  # the rollout, and once more for the gradient
    noise = rollouts_draw().normal(torch.zeros(64, 2))
    for x_t, time in (seen[:2], seen[2:]):
        assert torch.equal(x_t, noise) and torch.equal(time, torch.full((64,), 999.0))


class Listening:
    """A network that writes down whose condition it is told, and shows what it is shown in its middle."""

    head = nn.Identity()

    def __init__(self, name: str, told: list[tuple[str, Tensor]]) -> None:
        self.name, self.told = name, told

    def __call__(self, x_t: Tensor, time: Tensor, cond: Cond) -> Tensor:
        self.told.append((self.name, cond["modes"]))
        return x_t

    def middle(self, x_t: Tensor, time: Tensor, cond: Cond) -> Tensor:
        self.told.append((f"{self.name}'s middle", cond["modes"]))
        return x_t[..., None, None]

    def with_middle(self, x_t: Tensor, time: Tensor, cond: Cond) -> tuple[Tensor, Tensor]:
        return self(x_t, time, cond), x_t[..., None, None]


def test_each_network_is_told_the_condition_of_the_rows_it_is_asked_about() -> None:
    told: list[tuple[str, Tensor]] = []
    nets: dict[str, Any] = {
        name: Denoiser(Listening(name, told), SD, "sample") for name in ("student", "teacher", "fake_score")
    }
    nets |= {"decoder": nn.Identity(), "perceptual": l2}
    batch = with_rollout(nets, batch_of())
    fake_score_loss(nets, batch, is_adversarial=True)
    student_loss(nets, batch, guidance_scale=3.0, regression_weight=0.25, adversarial_weight=0.01)
    prompts, pairs, data = (batch[name] for name in ("prompts", "pairs", "data"))
    expected = [
        ("student", prompts.cond["modes"]),
        ("fake_score", prompts.cond["modes"]),
        ("fake_score's middle", data.cond["modes"]),
        ("student", prompts.cond["modes"]),
        ("teacher", torch.cat([prompts.cond["modes"], prompts.uncond["modes"]])),
        ("fake_score", prompts.cond["modes"]),
        ("student", pairs.cond["modes"]),
        ("fake_score's middle", prompts.cond["modes"]),
    ]
    for (name, modes), (wanted_name, wanted) in zip(told, expected, strict=True):
        assert name == wanted_name and torch.equal(modes, wanted)


# Backward simulation.


def simulated(student: Callable[[Tensor, Tensor, Cond], Tensor], step: int, rows: range = range(64)) -> Rows:
    """What a student of four steps makes in a step of the training."""
    batch = Batch(
        {"prompts": sources_of(rows.stop)["prompts"].take(slice(rows.start, rows.stop))}, Draw(0, step, 2, rows)
    )
    return rollout({"student": Denoiser(student, SD, "sample")}, batch, student_steps=4)  # pyright: ignore


def test_a_sample_of_several_steps_is_one_that_the_student_meets_on_its_own_way() -> None:
    """Its last step starts at one of four even times; from the second on, from its own sample, noised again."""
    net = linear(0.3, 1.0)
    stops = []
    for step in range(12):
        sample = simulated(net, step)
        draw, cond = Draw(0, step, 2, range(64)), sources_of()["prompts"].cond
        x_t, at = draw.normal(sample.x0), torch.full((64,), 999.0)
        draw.integer(0, 4)
        while at[0] > sample.t[0]:
            alpha, sigma = (level.float() for level in levels_at(at - 250))
            x_t, at = alpha * net(x_t, at, cond) + sigma * draw.normal(x_t), at - 250
        torch.testing.assert_close(sample.t, at)
        torch.testing.assert_close(sample.x_t, x_t, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(sample.x0, net(x_t, at, cond), atol=1e-5, rtol=1e-5)
        stops.append(at[0].item())
    assert set(stops) == {249.0, 499.0, 749.0, 999.0}


def test_every_stop_is_as_likely_and_the_same_for_all_ranks() -> None:
    net, stops = linear(0.3, 1.0), []
    for step in range(400):
        first, second = (simulated(net, step, rows) for rows in (range(2), range(2, 4)))
        assert set(first.t.tolist()) == set(second.t.tolist()) and len(set(first.t.tolist())) == 1
        stops.append(first.t[0].item())
    for time in (249.0, 499.0, 749.0, 999.0):  # within four standard deviations
        assert abs(stops.count(time) - 100) < 4 * (400 * 3 / 16) ** 0.5


@pytest.mark.parametrize("steps", [2, 3, 4, 6, 7, 8])
def test_the_student_is_asked_at_the_times_that_it_is_sampled_at(steps: int) -> None:
    scheduler = LCMScheduler(original_inference_steps=DistributionMatching().sampler().grid)
    scheduler.set_timesteps(steps)
    seen: list[float] = []

    def net(x_t: Tensor, time: Tensor, cond: Cond) -> Tensor:
        seen.append(time[0].item())
        return x_t

    nets: Any = {"student": Denoiser(net, SD, "sample")}
    prompts = {"prompts": sources_of()["prompts"]}
    for step in range(40):
        rollout(nets, Batch(prompts, Draw(0, step, 2, range(64))), student_steps=steps)
    assert set(seen) == set(scheduler.timesteps.tolist())


def test_gradients_reach_the_last_step_alone() -> None:
    net = nn.Linear(2, 2)
    inputs: list[Tensor] = []

    def student(x_t: Tensor, time: Tensor, cond: Cond) -> Tensor:
        inputs.append(x_t)
        return net(x_t)

    teacher, fake = (Denoiser(linear(k, 1.0), SD, "sample") for k in (0.3, -0.2))
    nets: dict[str, Any] = {"student": Denoiser(student, SD, "sample"), "teacher": teacher, "fake_score": fake}
    batch = with_rollout(nets, Batch(sources_of(), Draw(0, 1, 0, range(64))), student_steps=4)
    assert len(inputs) > 1
    weights = {"guidance_scale": 1.0, "regression_weight": 0.0, "adversarial_weight": 0.0}
    student_loss(nets, batch, **weights)["matching"].backward()  # pyright: ignore[reportArgumentType]
    assert torch.equal(inputs[-1], batch["rollout"].x_t) and torch.equal(inputs[-2], inputs[-1])
    assert net.weight.grad is not None and net.weight.grad.count_nonzero()


# The fake score.


@every_prediction
def test_the_fake_score_denoises_the_students_samples_in_its_own_prediction(
    prediction: Literal["epsilon", "sample", "v_prediction"],
) -> None:
    x0 = numbers(7)
    nets = {"student": always(x0), "fake_score": Denoiser(linear(-0.2, 0.5), SD, prediction)}
    found = of_fake_score(nets, batch_of())
    draw = Draw(0, 0, 0, range(64))
    t = draw.uniform() * 1000 - 1
    eps = draw.normal(x0).double()
    alpha, sigma = levels_at(t)
    x_t = alpha * x0.double() + sigma * eps
    modes = sources_of()["prompts"].cond["modes"][:, :2].double()
    output = -0.2 * x_t + (t.double().clamp_min(0) / 900)[:, None] + 0.5 * modes
    wanted = {"epsilon": eps, "sample": x0.double(), "v_prediction": alpha * eps - sigma * x0.double()}[prediction]
    assert set(found) == {"denoising"}
    torch.testing.assert_close(found["denoising"].double(), (output - wanted).square().mean(), rtol=1e-4, atol=0)


def test_the_fake_score_sees_every_time() -> None:
    seen: list[Tensor] = []

    def net(x_t: Tensor, time: Tensor, cond: Cond) -> Tensor:
        seen.append(time)
        return x_t

    samples = 4096
    nets = {"student": always(numbers(7, samples)), "fake_score": Denoiser(net, SD, "epsilon")}
    of_fake_score(nets, Batch(sources_of(samples), Draw(0, 0, 0, range(samples))))
    (time,) = seen
    assert 0 <= time.min() < 2 and 997 < time.max() <= 999
    assert abs(time.mean() - 499) < 4 * 1000 / (12 * samples) ** 0.5  # four standard errors


# Regression and discriminator.


def test_the_regression_compares_decoded_samples_of_stored_pairs() -> None:
    batch, net = batch_of(), linear(0.3, 1.0)
    nets = {
        "student": Denoiser(net, SD, "sample"),
        "teacher": Denoiser(net, SD, "sample"),
        "fake_score": Denoiser(net, SD, "sample"),
        "decoder": torch.exp,
        "perceptual": lambda a, b: (a - b).abs().mean(1),
    }
    found = of_student(nets, batch, guidance_scale=3.0, regression_weight=0.25, adversarial_weight=0.0)
    pairs = batch["pairs"]
    one_step = 0.3 * pairs.noise.double() + 999 / 900 + pairs.cond["modes"][:, :2].double()
    expected = 0.25 * (one_step.exp() - pairs.x0.double().exp()).abs().mean()
    assert set(found) == {"matching", "regression"}
    torch.testing.assert_close(found["regression"].double(), expected, rtol=1e-5, atol=0)


class Middle:
    """A network whose middle is what it is shown, a little skewed by time and condition; it remembers times."""

    def __init__(self) -> None:
        self.times: list[Tensor] = []

    def __call__(self, x_t: Tensor, time: Tensor, cond: Cond) -> Tensor:
        return 0.3 * x_t + (time / 900)[:, None]

    def middle(self, x_t: Tensor, time: Tensor, cond: Cond) -> Tensor:
        self.times.append(time)
        return (x_t + (time / 900)[:, None] + cond["modes"][:, :2])[..., None, None]

    def with_middle(self, x_t: Tensor, time: Tensor, cond: Cond) -> tuple[Tensor, Tensor]:
        return self(x_t, time, cond), self.middle(x_t, time, cond)

    def head(self, middle: Tensor) -> Tensor:
        return middle.sum(1, keepdim=True)


def judged(x0: Tensor, cond: Cond, draw: Draw) -> Tensor:
    """The head's logit in float64, without the code under test."""
    t = draw.uniform() * 1000 - 1
    alpha, sigma = levels_at(t)
    x_t = alpha * x0.double() + sigma * draw.normal(x0).double()
    return (x_t + (t.double().clamp_min(0) / 900)[:, None] + cond["modes"][:, :2]).sum(1)


def adversaries() -> dict[str, Any]:
    return {name: Denoiser(Middle(), SD, "sample") for name in ("student", "teacher", "fake_score")}


def test_dmd2_asks_how_real_the_students_samples_look_to_the_fake_score_under_noise() -> None:
    nets, batch = adversaries(), batch_of()
    weights = {"guidance_scale": 3.0, "regression_weight": 0.0, "adversarial_weight": 0.01}
    found = of_student(nets, batch, **weights)
    draw, prompts = Draw(0, 0, 0, range(64)), batch["prompts"]
    x0 = 0.3 * rollouts_draw().normal(prompts.blank) + 999 / 900
    draw.uniform(), draw.normal(x0)  # of the matching
    assert set(found) == {"matching", "adversarial"}
    wanted = -0.01 * judged(x0, prompts.cond, draw).sigmoid().log().mean()
    torch.testing.assert_close(found["adversarial"].double(), wanted, rtol=1e-4, atol=0)


def test_the_head_and_the_features_beneath_it_learn_to_tell_real_from_generated() -> None:
    nets, batch = adversaries(), batch_of()
    draw, prompts, data = Draw(0, 0, 0, range(64)), batch["prompts"], batch["data"]
    x0 = 0.3 * rollouts_draw().normal(prompts.blank) + 999 / 900
    fake, real = judged(x0, prompts.cond, draw), judged(data.x0, data.cond, draw)
    wanted = -(1 - fake.sigmoid()).log().mean() - real.sigmoid().log().mean()
    losses = of_fake_score(nets, batch, is_adversarial=True)
    assert set(losses) == {"denoising", "classification"}
    torch.testing.assert_close(losses["classification"].double(), 0.01 * wanted, rtol=1e-4, atol=0)
    torch.testing.assert_close(losses["denoising"], of_fake_score(nets, batch_of())["denoising"])


def test_the_features_beneath_the_head_learn_too() -> None:
    """By both sides: of the generated samples, whose features come with the answer, and of the real ones."""
    _, nets = networks(improved=True)
    batch, draw = with_rollout(nets, batch_of()), Draw(0, 0, 0, range(64))
    network: Any = mixture.module(nets["fake_score"])
    weight = network.body[0].weight
    loss = fake_score_loss(nets, batch, is_adversarial=True)["classification"]  # pyright: ignore[reportArgumentType]
    logits = []
    for rows in (batch["rollout"], batch["data"]):
        t = LEVELS.at(draw.uniform())
        x_t = diffuse(LEVELS, rows.x0, draw.normal(rows.x0), t)
        logits.append(network.head(network.middle(x_t, t.clamp_min(0), rows.cond)))
    generated, real = logits
    wanted = 0.01 * (F.softplus(generated).mean() + F.softplus(-real).mean())
    slopes = (torch.autograd.grad(value, weight)[0] for value in (loss, wanted))
    torch.testing.assert_close(*slopes, rtol=1e-4, atol=1e-9)


def test_the_discriminator_sees_samples_under_every_noise() -> None:
    nets, samples = adversaries(), 4096
    of_fake_score(nets, Batch(sources_of(samples), Draw(0, 0, 0, range(samples))), is_adversarial=True)
    assert len(nets["fake_score"].net.times) == 2
    for time in nets["fake_score"].net.times:
        assert 0 <= time.min() < 2 and 997 < time.max() <= 999


# Whose gradient it is.


def networks(improved: bool = False) -> tuple[DistributionMatching, dict[str, Any]]:
    """DMD or DMD2, all of whose networks have weights that would take a gradient."""
    torch.manual_seed(0)
    dmd2 = DistributionMatching(student_steps=2, regression_weight=0.0, adversarial_weight=0.1)
    method = dmd2 if improved else DistributionMatching()
    nets: dict[str, Any] = {
        name: Denoiser(mixture.StudentNetwork(LEVELS), LEVELS, "v_prediction")
        for name in ("student", "teacher", "fake_score")
    }
    nets["decoder"] = nn.Linear(2, 2)
    nets["perceptual"] = Distance()
    if improved:
        nets["fake_score"] = Denoiser(Seeing(LEVELS), LEVELS, "v_prediction")
        fake_score = method.rounds()[0].nets["fake_score"]
        assert isinstance(fake_score, Trained) and fake_score.head
        mixture.module(nets["fake_score"]).add_module("head", fake_score.head(mixture.module(nets["fake_score"])))
    return method, nets


class Distance(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(2))

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        return (self.scale * (a - b)).square().mean(1)


class Seeing(mixture.StudentNetwork):
    """Its middle is the last hidden layer of its correction."""

    middle_channels = 96

    def middle(self, x_t: Tensor, time: Tensor, cond: Cond) -> Tensor:
        return self.with_middle(x_t, time, cond)[1]

    def with_middle(self, x_t: Tensor, time: Tensor, cond: Cond) -> tuple[Tensor, Tensor]:
        seen: list[Tensor] = []
        hook = self.body[-2].register_forward_hook(lambda _, __, output: seen.append(output))
        answer = self(x_t, time, cond)
        hook.remove()
        return answer, seen[0][..., None, None]


FROZEN = ("decoder", "perceptual")


@pytest.mark.parametrize("improved", [False, True], ids=["dmd", "dmd2"])
def test_an_update_gives_gradients_to_its_own_network_alone(improved: bool) -> None:
    method, nets = networks(improved)
    (round_,) = method.rounds()
    for update in round_.updates:
        for name in FROZEN:
            nets[name].requires_grad_(False)
        mixture.thaw(nets, ("fake_score",), update.net)
        for name in ("student", "teacher"):  # nothing passes to these, frozen or not
            mixture.module(nets[name]).requires_grad_(True)
        losses = update.loss(nets, mixture.rolled_out(round_, nets, batch_of()))
        torch.stack(list(losses.values())).sum().backward()
        assert mixture.touched(nets) == {update.net}
        for net in nets.values():
            for weight in mixture.weights(net):
                weight.grad = None


@pytest.mark.parametrize("improved", [False, True], ids=["dmd", "dmd2"])
def test_the_losses_do_not_depend_on_how_the_batch_is_split(improved: bool) -> None:
    method, nets = networks(improved)
    (round_,) = method.rounds()
    for update in round_.updates:
        whole, *halves = (
            update.loss(nets, mixture.rolled_out(round_, nets, batch_of(rows)))
            for rows in (range(64), range(32), range(32, 64))
        )
        for name, value in whole.items():
            torch.testing.assert_close(value, (halves[0][name] + halves[1][name]) / 2, rtol=1e-4, atol=1e-6)


# What the papers promise.


def matched(
    method: DistributionMatching, student: Denoiser, steps: int, learning_rate: float
) -> list[tuple[float, float, float]]:
    """Errors of the student's samples before and after training; its fake score starts as the teacher."""
    (round_,) = method.rounds()
    nets: dict[str, Any] = {
        "student": student,
        "teacher": mixture.teacher(LEVELS),
        "fake_score": Denoiser(mixture.StudentNetwork(LEVELS), LEVELS, "v_prediction"),
        "decoder": nn.Identity(),
        "perceptual": l2,
    }
    prompts = mixture.unconditional(2048, seed=0)
    noise = numbers(3, 2048)
    path, _ = mixture.solve(nets["teacher"], noise, prompts.cond, prompts.uncond, torch.ones(2048), 50)
    rows = {"prompts": prompts, "pairs": Rows({"noise": noise, "x0": path[:, -1]}, prompts.cond, prompts.uncond)}
    before = mixture.law_errors(student)
    read = {name: rows[name] for name in round_.sources}
    mixture.alternate(round_, nets, read, steps, batch_size=64, learning_rate=learning_rate)
    return [before, mixture.law_errors(student)]


def test_matching_alone_moves_the_samples_to_the_teachers_law() -> None:
    torch.manual_seed(0)
    method = DistributionMatching(guidance_scale=1.0, regression_weight=0.0, student_every=5, fake_lr_scale=2.0)
    before, after = matched(method, Denoiser(mixture.Blob(), LEVELS, "sample"), steps=1000, learning_rate=2e-3)
    # Seen over five seeds: at most 0.1, 0.11 to 0.21, and 0.03 to 0.05.
    assert after[0] < 0.25 * before[0]
    assert after[1] < 0.5 * before[1]
    assert after[2] < 0.15 * before[2]


def test_matching_and_pairs_make_samples_of_the_teachers_blurred_step() -> None:
    torch.manual_seed(0)
    method = DistributionMatching(guidance_scale=1.0, fake_lr_scale=2.0)
    student = Denoiser(mixture.StudentNetwork(LEVELS), LEVELS, "v_prediction")
    before, after = matched(method, student, steps=400, learning_rate=1e-3)
    # It starts with the mixture's mean whatever the noise. Seen over five seeds: 0.04 to 0.18, then as parts of the
    # start 0.10 to 0.15, and 0.04 to 0.05.
    assert after[0] < 0.3
    assert after[1] < 0.4 * before[1]
    assert after[2] < 0.15 * before[2]
