"""Latent consistency models on a mixture whose ODE is known."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

import pytest
import torch
from diffusers import LCMScheduler

from fewstep.methods.base import Averaged, Method, Round
from fewstep.methods.batch import Batch, Draw, Rows
from fewstep.methods.diffusion import Denoiser, guided, step, with_guidance
from fewstep.methods.lcm import LCM, LCMLoRA, boundary_scalings, consistency_function
from fewstep.methods.schedules import DiscreteVP, RectifiedFlow
from fewstep.methods.solution_points import online_points, points_in, stored_points
from tests.support import mixture

LEVELS = mixture.schedule()
SCALES = (1.0, 4.0)
MODES = ("online", "stored")


@pytest.fixture(scope="module")
def sources() -> dict[str, Rows]:
    path, data = mixture.rows(2048, LEVELS, 50, SCALES)
    return {"path": path, "data": data}


def only_round(method: Method) -> Round:
    (round_,) = method.rounds()
    return round_


def batch_of(sources: dict[str, Rows], rows: range = range(64)) -> Batch:
    taken = {name: source.take(slice(rows.start, rows.stop)) for name, source in sources.items()}
    return Batch(taken, Draw(0, 0, 0, rows))


def test_the_boundary_scalings_are_those_of_the_inference_scheduler() -> None:
    scheduler = LCMScheduler()
    for t in (0, 1, 19, 259, 999):
        ours = boundary_scalings(torch.tensor([float(t)]))
        theirs = scheduler.get_scalings_for_boundary_condition_discrete(t)
        for value, expected in zip(ours, theirs, strict=True):
            torch.testing.assert_close(value.item(), float(expected), rtol=1e-6, atol=0)


def test_inference_times_are_on_the_training_grid() -> None:
    scheduler = LCMScheduler(original_inference_steps=LCM().sampler().grid)
    grid = LEVELS.at(torch.arange(1, 51) / 50).round().long().tolist()
    for steps in (1, 2, 4, 8):
        scheduler.set_timesteps(steps)
        assert set(scheduler.timesteps.tolist()) <= set(grid)


def test_clean_data_maps_to_itself() -> None:
    x = torch.randn(8, 2, generator=torch.Generator().manual_seed(0))
    cond, _ = mixture.conditions(torch.zeros(8, dtype=torch.long))
    assert torch.equal(consistency_function(mixture.teacher(LEVELS), x, torch.full((8,), -1.0), cond), x)


def test_the_student_is_the_teacher_at_step_zero() -> None:
    nets = mixture.networks(only_round(LCM()), LEVELS)
    x_t = torch.randn(8, 2, generator=torch.Generator().manual_seed(0))
    cond, _ = mixture.conditions(torch.arange(8) % 3)
    t = LEVELS.at(torch.linspace(0.1, 1, 8))
    told = with_guidance(cond, torch.full((8,), 7.0))
    assert torch.equal(nets["student"](x_t, t, told).x0, nets["teacher"](x_t, t, cond).x0)


@pytest.mark.parametrize("teacher_step", MODES)
def test_only_the_student_gets_gradients(teacher_step: Literal["online", "stored"], sources: dict[str, Rows]) -> None:
    round_ = only_round(LCM(teacher_step=teacher_step, guidance_scale=SCALES))
    nets = mixture.networks(round_, LEVELS)
    for name in ("target", "average"):
        mixture.module(nets[name]).requires_grad_(True)
    losses = round_.updates[0].loss(nets, batch_of(sources))
    sum(losses.values(), torch.zeros(())).backward()
    moved = {name for name, net in nets.items() if any(w.grad is not None for w in mixture.module(net).parameters())}
    assert moved == {"student"}


def test_a_stored_step_calls_no_teacher(sources: dict[str, Rows]) -> None:
    round_ = only_round(LCM(teacher_step="stored"))
    nets = mixture.networks(round_, LEVELS)
    del nets["teacher"]
    losses = round_.updates[0].loss(nets, batch_of({"path": sources["path"]}))
    assert all(loss.isfinite() for loss in losses.values())


def test_the_stored_neighbor_is_the_online_solver_step(sources: dict[str, Rows]) -> None:
    # On a path of as many steps as the grid, one stored step is one guided DDIM step of the teacher.
    rows, denoiser = sources["path"].take(slice(0, 64)), mixture.teacher(LEVELS)
    batch = Batch({"path": rows}, Draw(0, 0, 0, range(64)))
    found = stored_points({"student": denoiser}, batch, skip=20)
    estimate = guided(denoiser, found.x_t, found.t, rows.cond, rows.uncond, rows.guidance_scale)
    torch.testing.assert_close(step(LEVELS, estimate, found.s), found.x_s, atol=1e-5, rtol=1e-5)
    assert torch.equal(found.t - found.s, torch.full((64,), 20.0))


@pytest.mark.parametrize(("student_steps", "skip", "hops"), [(1, 500, 2), (1, 1000, 1), (2, 200, 10), (5, 200, 5)])
def test_sampled_times_are_where_steps_start_and_hops_end(
    student_steps: int, skip: int, hops: int, sources: dict[str, Rows]
) -> None:
    batch = Batch({"path": sources["path"].take(slice(0, 64))}, Draw(0, 0, 0, range(64)))
    nets = {"student": mixture.teacher(LEVELS)}
    found = stored_points(nets, batch, skip=skip, student_steps=student_steps)
    assert found.t.unique().tolist() == [LEVELS.at(torch.tensor(1 - i / hops)).item() for i in reversed(range(hops))]


def test_sampled_times_need_stored_paths_that_they_lie_on() -> None:
    LCM(teacher_step="stored", student_steps=2, times="sampled")
    for options in ({"teacher_step": "online"}, {"teacher_step": "stored", "student_steps": 3}):
        with pytest.raises(ValueError, match="times: sampled is for teacher_step: stored and a grid=50"):
            LCM(times="sampled", **options)


@pytest.mark.parametrize("teacher_step", MODES)
def test_the_loss_does_not_depend_on_how_the_batch_is_split(
    teacher_step: Literal["online", "stored"], sources: dict[str, Rows]
) -> None:
    round_ = only_round(LCM(teacher_step=teacher_step, guidance_scale=SCALES))
    nets = mixture.networks(round_, LEVELS)
    loss = round_.updates[0].loss
    whole = loss(nets, batch_of(sources, range(64)))["consistency"]
    halves = [loss(nets, batch_of(sources, rows))["consistency"] for rows in (range(32), range(32, 64))]
    torch.testing.assert_close(whole, torch.stack(halves).mean())


def test_a_skip_that_is_no_whole_number_of_stored_steps_is_refused() -> None:
    assert points_in(100, 50, LEVELS) == 5
    with pytest.raises(ValueError, match="skip must be a multiple of the stored path's spacing, 1000/50 timesteps"):
        points_in(30, 50, LEVELS)


@pytest.mark.parametrize("levels", [LEVELS, RectifiedFlow(3.0)], ids=["diffusion", "shifted flow"])
def test_neighbors_are_skip_thousandths_of_the_way_apart(
    levels: DiscreteVP | RectifiedFlow, sources: dict[str, Rows]
) -> None:
    nets = {"teacher": replace(mixture.teacher(LEVELS), schedule=levels)}
    found = online_points(nets, batch_of(sources), grid=50, skip=40, guidance_scale=SCALES)
    times = levels.at(torch.arange(51) / 50)
    here, before = ((times - t[:, None]).abs().min(1) for t in (found.t, found.s))
    assert max(here.values.max(), before.values.max()) < 1e-3 and set(here.indices.tolist()) > {1, 2, 50}
    assert torch.equal(before.indices, (here.indices - 2).clamp_min(0))


@pytest.mark.parametrize("loss", ["huber", "l2"])
@pytest.mark.parametrize("teacher_step", MODES)
def test_one_step_approaches_the_end_of_the_guided_ode(
    teacher_step: Literal["online", "stored"], loss: Literal["huber", "l2"]
) -> None:
    levels = mixture.schedule(100)
    path, data = mixture.rows(4096, levels, 10, SCALES)
    method = LCM(
        teacher_step=teacher_step,
        loss=loss,
        guidance_scale=SCALES,
        skip=10,
        grid=10,
        ema_decay=0.9,
        sampling_ema_decay=0.95,
    )
    round_ = only_round(method)
    nets = mixture.networks(round_, levels)
    start, _ = errors(nets, levels)
    mixture.train(round_, nets, {"path": path, "data": data}, steps=300)
    end, unguided = errors(nets, levels)
    # Seen: 0.33 to 0.35 of the start, and 0.65 to 0.77 of the error without guidance; these leave room for both.
    assert end < 0.5 * start
    assert end < 0.9 * unguided


def errors(nets: dict[str, Denoiser], levels: DiscreteVP) -> tuple[float, float]:
    """Distance of the result's one-step samples from the finely solved ODE, told its guidance scale or told none."""
    generator = torch.Generator().manual_seed(1)
    cond, uncond = mixture.conditions(torch.randint(3, (512,), generator=generator))
    noise, w = torch.randn(512, 2, generator=generator), torch.full((512,), 4.0)
    end = mixture.solve(mixture.teacher(levels), noise, cond, uncond, w, 100)[0][:, -1]
    told = mixture.one_step(nets["average"], noise, with_guidance(cond, w))
    not_told = mixture.one_step(nets["average"], noise, with_guidance(cond, torch.ones(512)))
    return mixture.root_mean_square(told, end), mixture.root_mean_square(not_told, end)


def test_lcm_lora_is_its_own_target_and_has_no_guidance_input(sources: dict[str, Rows]) -> None:
    round_ = only_round(LCMLoRA(teacher_step="stored"))
    assert not any(isinstance(net, Averaged) for net in round_.nets.values())
    nets = mixture.networks(round_, LEVELS)
    before = mixture.one_step(nets["student"], torch.ones(4, 2), mixture.conditions(torch.arange(4) % 3)[0])
    mixture.train(round_, nets, {"path": sources["path"]}, steps=20)
    after = mixture.one_step(nets["student"], torch.ones(4, 2), mixture.conditions(torch.arange(4) % 3)[0])
    assert not torch.equal(before, after)
