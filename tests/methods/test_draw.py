"""Randomness belongs to the sample: laws of Draw."""

from __future__ import annotations

import torch

from fewstep.methods.batch import Draw, mix

LIKE = torch.zeros(8, 3, 2)


def everything(draw: Draw, rows: int) -> torch.Tensor:
    """Two draws of each kind, one row per sample."""
    parts = [draw.normal(LIKE[:rows]).flatten(1), draw.uniform(1, 3)[:, None], draw.integers(0, 1000)[:, None].float()]
    return torch.cat([*parts, draw.normal(LIKE[:rows]).flatten(1), draw.uniform()[:, None]], 1)


def test_the_numbers_do_not_depend_on_how_rows_are_split() -> None:
    whole = everything(Draw(3, 5, 0, range(8)), 8)
    split = [everything(Draw(3, 5, 0, rows), len(rows)) for rows in (range(0, 2), range(2, 7), range(7, 8))]
    assert torch.equal(whole, torch.cat(split))


def test_calls_steps_updates_seeds_and_rows_differ() -> None:
    draw = Draw(0, 0, 0, range(8))
    drawn = [draw.normal(LIKE), draw.normal(LIKE)]
    drawn += [Draw(*key, range(8)).normal(LIKE) for key in ((1, 0, 0), (0, 1, 0), (0, 0, 1))]
    drawn += [Draw(0, 0, 0, range(8, 16)).normal(LIKE)]
    values = torch.stack(drawn).flatten()
    assert len(values.unique()) == len(values)


def test_draws_have_the_distribution_that_they_name() -> None:
    draw = Draw(0, 0, 0, range(4000))
    normal, uniform, integers = draw.normal(torch.zeros(4000, 1)), draw.uniform(2, 4), draw.integers(1, 4)
    # Tolerances are four standard errors.
    assert abs(normal.mean()) < 0.064 and abs(normal.std() - 1) < 0.045
    assert abs(uniform.mean() - 3) < 0.037 and uniform.min() >= 2 and uniform.max() <= 4
    assert integers.unique().tolist() == [1, 2, 3]


def test_mixing_gives_the_numbers_that_draws_have_always_come_from() -> None:
    assert mix(0, 0, 0, 0, 0) == 8695987549771912286
    assert mix(1, 2, 3, 4, 5) == 1449779360749163299
    assert mix(3, 5, 0, 2, 7) == 5033916301197506966
    assert mix(-1, 0, 0, 0, 0) == 5389392687825388133
    assert mix(2**61 - 1, 10, 1, 1, 2047) == 11997108999973144800


def test_a_draw_is_seeded_by_all_that_it_depends_on() -> None:
    second = Draw(3, 5, 0, range(7, 8))
    second.uniform()
    generator = torch.Generator().manual_seed(mix(3, 5, 0, 2, 7))
    assert torch.equal(second.normal(torch.zeros(1, 3)), torch.randn(3, generator=generator)[None])


def test_the_global_generator_is_left_alone() -> None:
    before = torch.get_rng_state()
    everything(Draw(0, 0, 0, range(8)), 8)
    assert torch.equal(before, torch.get_rng_state())
