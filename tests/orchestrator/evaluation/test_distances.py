from __future__ import annotations

import numpy as np
import pytest

from fewstep.orchestrator.evaluation.distances import (
    BootstrapEstimate,
    FeatureMoments,
    Features,
    KernelDistances,
    Resampling,
    combine,
    exactly,
    frechet_distance,
    kernel,
    precision_and_recall,
    same_noise_distance,
    times_less,
    units_of,
    units_of_images,
    variety,
)


def clustered(generator: np.random.Generator, units: np.ndarray, shift: float, common: np.ndarray) -> Features:
    """Samples of a prompt resemble each other: `common` [prompts, d] is what they share."""
    noise = generator.normal(size=(len(units), common.shape[1]))
    return Features(shift + common[units] + noise, units)


def test_kid_is_the_double_sum_over_pairs_of_different_prompts() -> None:
    generator = np.random.default_rng(0)
    units = np.arange(12) % 5
    x, y = (Features(generator.normal(size=(12, 3)), units) for _ in range(2))
    kid = KernelDistances({"x": x, "y": y}, Resampling(5, 0, 2, seed=0)).between("x", "y")

    def k(a: np.ndarray, b: np.ndarray) -> float:
        return (float(a @ b) / 3 + 1) ** 3

    def mean(a: Features, b: Features) -> float:
        pairs = [(i, j) for i in range(12) for j in range(12) if units[i] != units[j]]
        return sum(k(a.values[i], b.values[j]) for i, j in pairs) / len(pairs)

    assert kid.value == pytest.approx(mean(x, x) + mean(y, y) - 2 * mean(x, y), rel=1e-12)


def test_kid_without_shared_prompts_is_the_usual_unbiased_one() -> None:
    generator = np.random.default_rng(1)
    x, y = generator.normal(size=(20, 4)), generator.normal(0.5, size=(30, 4))
    sets = {"x": Features(x, np.arange(20)), "y": Features(y, 20 + np.arange(30))}
    kid = KernelDistances(sets, Resampling(20, 30, 2, seed=0)).between("x", "y")
    kxx, kyy = kernel(x, x), kernel(y, y)
    expected = (kxx.sum() - np.trace(kxx)) / (20 * 19) + (kyy.sum() - np.trace(kyy)) / (30 * 29)
    assert kid.value == pytest.approx(expected - 2 * kernel(x, y).mean(), rel=1e-12)


def test_a_resampling_weighs_as_repeating_the_prompts_would() -> None:
    generator = np.random.default_rng(2)
    units = np.arange(8) % 4
    x, y = (Features(generator.normal(size=(8, 3)), units) for _ in range(2))
    resampling = Resampling(4, 0, 3, seed=5)
    kid = KernelDistances({"x": x, "y": y}, resampling).between("x", "y")
    for draw, weights in zip(kid.draws[1:], resampling.weights[1:].astype(int), strict=True):
        rows = [i for i in range(8) for _ in range(weights[units[i]])]
        repeated = {name: Features(part.values[rows], units[rows]) for name, part in (("x", x), ("y", y))}
        assert draw == pytest.approx(KernelDistances(repeated, Resampling(4, 0, 0, 0)).between("x", "y").value)


def test_the_null_is_zero_on_average_though_prompts_are_shared() -> None:
    values = []
    for seed in range(200):
        generator = np.random.default_rng(seed)
        units, common = np.arange(40) % 20, 2 * generator.normal(size=(20, 3))
        sets = {name: clustered(generator, units, 0, common) for name in ("x", "y")}
        values.append(KernelDistances(sets, Resampling(20, 0, 1, seed=0)).between("x", "y").value)
    assert abs(np.mean(values)) < 3 * np.std(values) / np.sqrt(200)


def test_intervals_of_a_difference_cover_the_truth() -> None:
    """Two systems shifted by 0.6 and 0.4 against one reference; the truth is a large sample's answer."""

    def claim(seed: int, prompts: int, bootstraps: int) -> tuple[float, float, float]:
        generator = np.random.default_rng(seed)
        units, common = units_of(prompts, prompts), generator.normal(size=(prompts, 3))
        shifts = {"reference": 0.0, "teacher": 0.6, "student": 0.4}
        sets = {name: clustered(generator, units, shift, common) for name, shift in shifts.items()}
        kids = KernelDistances(sets, Resampling(prompts, 0, bootstraps, seed=seed))
        claim = combine((1, kids.between("student", "reference")), (-0.5, kids.between("teacher", "reference")))
        return claim.value, claim.low, claim.high

    truth = np.mean([claim(1000 + seed, 1500, 2)[0] for seed in range(4)])
    trials = 100
    covered = sum(low <= truth <= high for _, low, high in (claim(seed, 120, 200) for seed in range(trials)))
    assert covered >= 88  # of 95 expected; the binomial's deviation is 2.2


def test_paired_differences_are_tighter_than_their_parts() -> None:
    generator = np.random.default_rng(3)
    units, common = units_of(200, 200), generator.normal(size=(200, 4))
    sets = {name: clustered(generator, units, shift, common) for name, shift in (("r", 0), ("a", 0.5), ("b", 0.6))}
    kids = KernelDistances(sets, Resampling(200, 0, 300, seed=0))
    a, b = kids.between("a", "r"), kids.between("b", "r")
    difference = combine((1, b), (-1, a))
    assert difference.value == pytest.approx(b.value - a.value)
    assert difference.high - difference.low < (a.high - a.low) + (b.high - b.low)


def test_frechet_distance_of_scaled_gaussians_is_known() -> None:
    generator = np.random.default_rng(4)
    x = generator.normal(size=(4000, 3))
    # Exact on moments: y = 2 x + 1 has covariance 4 C and another mean.
    distance = frechet_distance(FeatureMoments.of(x), FeatureMoments.of(2 * x + 1))
    cov = np.cov(x, rowvar=False)
    assert distance == pytest.approx(((x.mean(0) + 1) ** 2).sum() + np.trace(cov), rel=1e-9)


def test_sets_that_are_too_large_for_one_matrix_are_compared_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = np.random.default_rng(6)
    units = np.arange(60) % 20
    x, y = (Features(generator.normal(size=(60, 3)), units) for _ in range(2))
    resampling = Resampling(20, 0, 5, seed=0)

    def compared() -> list[np.ndarray]:
        kid = KernelDistances({"x": x, "y": y}, resampling).between("x", "y")
        return [estimate.draws for estimate in (kid, *precision_and_recall(x, y, resampling))]

    whole = compared()
    monkeypatch.setattr("fewstep.orchestrator.evaluation.distances.ROWS", 7)
    for part, all_at_once in zip(compared(), whole, strict=True):
        np.testing.assert_allclose(part, all_at_once, rtol=1e-9)  # sums in another order


def test_precision_falls_with_outliers_and_recall_with_lost_modes() -> None:
    generator = np.random.default_rng(5)
    two_modes = np.concatenate([generator.normal(0, 0.1, (50, 2)), generator.normal(10, 0.1, (50, 2))])
    one_mode_and_junk = np.concatenate([generator.normal(0, 0.1, (50, 2)), generator.normal(-50, 0.1, (50, 2))])
    units = np.arange(100)
    precision, recall = precision_and_recall(
        Features(one_mode_and_junk, units), Features(two_modes, units), Resampling(100, 0, 50, seed=0)
    )
    assert precision.value == pytest.approx(0.5, abs=0.05)
    assert recall.value == pytest.approx(0.5, abs=0.05)
    assert precision.low < precision.value < precision.high


def test_variety_is_a_share_of_the_teachers_and_none_where_noise_changes_nothing() -> None:
    generator = np.random.default_rng(0)
    prompts = np.repeat(generator.normal(size=(6, 1, 12)), 8, axis=1)
    teacher = (prompts + generator.normal(size=(6, 8, 12))).reshape(48, 12)
    half = (prompts + 0.5 * (teacher.reshape(6, 8, 12) - prompts)).reshape(48, 12)
    resampling = Resampling(6, 0, 200, seed=0)
    assert variety(half, teacher, 8, resampling).value == pytest.approx(0.5)
    assert variety(prompts.reshape(48, 12), teacher, 8, resampling).value == pytest.approx(0, abs=1e-6)


def test_a_distance_is_so_many_times_less_as_the_whole_interval_says() -> None:
    draws = np.random.default_rng(0).normal(size=1000)
    one = BootstrapEstimate(np.concatenate([[1.0], 1 + 0.1 * draws]))
    six, same = (BootstrapEstimate(np.full(1001, value)) for value in (6.0, 1.0))
    assert times_less(one, six) == pytest.approx(6 / one.high, rel=1e-6)
    assert times_less(one, same) == 0
    assert times_less(exactly(-0.1), exactly(1.0)) == pytest.approx(100)


def test_same_noise_distance_is_zero_for_the_same_pictures() -> None:
    features = Features(np.ones((6, 2)), np.arange(6) % 3)
    moved = Features(features.values + [3, 4], features.units)
    resampling = Resampling(3, 0, 5, seed=0)
    assert same_noise_distance(features, features, resampling).value == 0
    assert same_noise_distance(moved, features, resampling).value == 5


def test_images_share_units_with_the_prompts_that_caption_them() -> None:
    assert units_of_images(["b", "a", "b"], ["a", "b"], 2, 3).tolist() == [1, 0, 1]
    assert units_of_images(["c", "b", "c", "d"], ["a", "b"], 2, 4).tolist() == [2, 1, 2, 3]
    assert units_of_images([], ["a", "b"], 2, 2).tolist() == [2, 3]
    assert units_of_images(["a", "b"], ["a", "b"], 6, 2).tolist() == [6, 7]


def test_few_prompts_make_every_sample_its_own_unit() -> None:
    assert units_of(4, 1).tolist() == [0, 1, 2, 3]
    assert units_of(62, 31).tolist() == [*range(31), *range(31)]
