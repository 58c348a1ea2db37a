"""Measures how near two sets of pictures are, with intervals. Plain numpy on features; knows no network and no Ray.

Sets share prompts, so a pair of samples of one prompt is not a pair of independent samples: such pairs are
left out of every sum. What is left is a U-statistic over prompts (Eq. 4 of Gretton et al., "A kernel two-sample
test", JMLR 2012), without bias whatever the pictures of one prompt have in common. Its bootstrap draws whole
prompts, the same ones for every set, so that differences are paired. A prompt drawn twice makes no pair with
itself either, which would count a picture's likeness to itself as quality. Near the null the bootstrap is too wide
(up to the square root of 3: it adds the linear terms that vanish there), never too narrow.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
UNITS = 30  # that resampling needs at least
MOST_TIMES = 100.0  # that one distance is said to be less than another: 0 would be so for ever
NEIGHBOURS = 3  # k of precision and recall, as in arXiv:1904.06991
ROWS = 2048  # of a matrix over pairs of samples that are in memory together
SAMPLES_FOR_FRECHET = 5000  # below, its bias is larger than what it measures


@dataclass(frozen=True)
class Features:
    """Features [n, d] of pictures, and which unit each is resampled with: its prompt, or itself."""

    values: NDArray[np.floating]
    units: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.values)


@dataclass(frozen=True)
class BootstrapEstimate:
    """A number and what the bootstrap made of it: `draws` holds the number itself, then each resampling."""

    draws: Floats

    @property
    def value(self) -> float:
        """What was measured."""
        return float(self.draws[0])

    @property
    def low(self) -> float:
        """Lower end of the 95 % interval."""
        return float(np.percentile(self.draws[1:], 2.5))

    @property
    def high(self) -> float:
        """Upper end of the 95 % interval."""
        return float(np.percentile(self.draws[1:], 97.5))


def combine(*terms: tuple[float, BootstrapEstimate]) -> BootstrapEstimate:
    """A weighted sum of paired estimates, like KID(student) - 0.5 KID(teacher)."""
    return BootstrapEstimate(sum((factor * estimate.draws for factor, estimate in terms), np.zeros(1)))


def times_less(one: BootstrapEstimate, other: BootstrapEstimate) -> float:
    """The most times, MOST_TIMES at most, that `one` fits into `other` by the whole 95 % interval; 0 if not once."""
    low, high = 0.0, MOST_TIMES
    for _ in range(40):  # halvings, to the last digit that anybody would say
        middle = (low + high) / 2
        low, high = (middle, high) if combine((middle, one), (-1, other)).high < 0 else (low, middle)
    return low if combine((1, one), (-1, other)).high < 0 else 0.0


def exactly(value: float) -> BootstrapEstimate:
    """A number without an interval."""
    return BootstrapEstimate(np.full(2, value))


class Resampling:
    """How often each unit counts: once in the first row, as drawn with replacement in the others.

    Units below `prompts` are prompts; `others` more, like real images without any, are drawn apart from them.
    """

    def __init__(self, prompts: int, others: int, bootstraps: int, seed: int) -> None:
        generator = np.random.default_rng(seed)
        draws = [_draws(generator, units, bootstraps) for units in (prompts, others) if units]
        self.weights = np.concatenate([np.ones((1, prompts + others)), np.concatenate(draws, axis=1)])

    def mean(self, values: Floats, units: NDArray[np.int64]) -> BootstrapEstimate:
        """The mean of one number per sample."""
        weights = self.weights[:, units]
        return BootstrapEstimate(weights @ values / weights.sum(axis=1))


def _draws(generator: np.random.Generator, units: int, bootstraps: int) -> Floats:
    """Multinomial counts; a draw of one unit alone, where a pair needs two, is drawn again."""
    if units < 2:
        raise ValueError("an interval needs at least two units to resample, got 1")
    even = np.full(units, 1 / units)
    counts = generator.multinomial(units, even, bootstraps)
    while len(single := np.flatnonzero(counts.max(axis=1) == units)):
        counts[single] = generator.multinomial(units, even, len(single))
    return counts.astype(np.float64)


class KernelDistances:
    """KID, the squared maximum mean discrepancy with a cubic kernel (arXiv:1801.01401), between sets by name."""

    def __init__(self, sets: Mapping[str, Features], resampling: Resampling) -> None:
        self._sets, self._resampling = sets, resampling
        self._means: dict[tuple[str, str], Floats] = {}

    def between(self, one: str, other: str) -> BootstrapEstimate:
        """The unbiased estimate over all samples at once."""
        return BootstrapEstimate(self._mean(one, one) + self._mean(other, other) - 2 * self._mean(one, other))

    def _mean(self, one: str, other: str) -> Floats:
        """Mean kernel over the pairs of samples that share no unit, for each resampling."""
        if (one, other) not in self._means:
            self._means[one, other] = mean_kernel(self._sets[one], self._sets[other], self._resampling)
        return self._means[one, other]


def mean_kernel(a: Features, b: Features, resampling: Resampling) -> Floats:
    """The weighted mean of k(x, y) over pairs of different units; a quadratic form in the units' weights."""
    units_a, in_a = np.unique(a.units, return_inverse=True)
    units_b, in_b = np.unique(b.units, return_inverse=True)
    weights_a, weights_b = resampling.weights[:, units_a], resampling.weights[:, units_b]
    total, count = np.zeros((2, len(weights_a)))
    size = max(1, ROWS * len(units_a) // len(a))
    for start in range(0, len(units_a), size):
        rows, units = np.flatnonzero((in_a >= start) & (in_a < start + size)), slice(start, start + size)
        groups, apart = in_a[rows] - start, units_a[units, None] != units_b[None, :]
        sums = _sum_by(_sum_by(kernel(a.values[rows], b.values), groups).T, in_b).T * apart
        pairs = np.bincount(groups)[:, None] * np.bincount(in_b)[None, :] * apart
        total += ((weights_a[:, units] @ sums) * weights_b).sum(axis=1)
        count += ((weights_a[:, units] @ pairs) * weights_b).sum(axis=1)
    return total / count


def _sum_by(rows: Floats, groups: NDArray[np.int64]) -> Floats:
    """Sums of the rows of each group."""
    order = np.argsort(groups, kind="stable")
    starts = np.flatnonzero(np.diff(groups[order], prepend=-1))
    return np.add.reduceat(rows[order], starts, axis=0)


def kernel(x: NDArray[np.floating], y: NDArray[np.floating]) -> Floats:
    """k(x, y) = (x . y / d + 1)^3."""
    return (x.astype(np.float64) @ y.astype(np.float64).T / x.shape[1] + 1) ** 3


@dataclass(frozen=True)
class FeatureMoments:
    """All that the Frechet distance knows of features: their mean [d] and covariance [d, d]."""

    mean: Floats
    covariance: Floats

    @classmethod
    def of(cls, values: NDArray[np.floating]) -> FeatureMoments:
        """The moments of features [n, d]."""
        values = values.astype(np.float64)
        return cls(values.mean(axis=0), np.cov(values, rowvar=False))


def frechet_distance(a: FeatureMoments, b: FeatureMoments) -> float:
    """|m_a - m_b|^2 + tr(C_a + C_b - 2 (C_a C_b)^(1/2)), arXiv:1706.08500. Biased; no interval."""
    values, vectors = np.linalg.eigh(a.covariance)
    root = vectors * np.sqrt(values.clip(0)) @ vectors.T
    cross = np.sqrt(np.linalg.eigvalsh(root @ b.covariance @ root).clip(0)).sum()
    return float(((a.mean - b.mean) ** 2).sum() + np.trace(a.covariance) + np.trace(b.covariance) - 2 * cross)


def precision_and_recall(
    judged: Features, reference: Features, resampling: Resampling
) -> tuple[BootstrapEstimate, BootstrapEstimate]:
    """How much of what is judged lies among the reference, and how much of the reference it reaches.

    arXiv:1904.06991: a set's manifold is the union of balls that reach each sample's third neighbour. The balls
    stay as they are when samples are resampled.
    """
    radii, reach = _radii(reference.values), _radii(judged.values)
    is_real, is_reached = np.zeros(len(judged)), np.zeros(len(reference), dtype=bool)
    for rows in _blocks(len(judged)):
        across = _squared_distances(judged.values[rows], reference.values)
        is_real[rows] = (across <= radii[None, :]).any(axis=1)
        is_reached |= (across <= reach[rows, None]).any(axis=0)
    return resampling.mean(is_real, judged.units), resampling.mean(is_reached.astype(np.float64), reference.units)


def neighbour_distances(judged: NDArray[np.floating], reference: NDArray[np.floating]) -> Floats:
    """How far each of features [n, d] is from the third nearest of a reference [m, d]; a typical one is near."""
    nth, distances = min(NEIGHBOURS, len(reference)) - 1, np.zeros(len(judged))
    for rows in _blocks(len(judged)):
        distances[rows] = np.sqrt(np.partition(_squared_distances(judged[rows], reference), nth, axis=1)[:, nth])
    return distances


def _radii(values: NDArray[np.floating]) -> Floats:
    """Squared distance of each sample to its third nearest other."""
    nth, radii = min(NEIGHBOURS, len(values) - 1) - 1, np.zeros(len(values))
    for rows in _blocks(len(values)):
        within = _squared_distances(values[rows], values)
        within[np.arange(len(within)), np.arange(len(values))[rows]] = np.inf
        radii[rows] = np.partition(within, nth, axis=1)[:, nth]
    return radii


def _blocks(count: int) -> list[slice]:
    return [slice(start, start + ROWS) for start in range(0, count, ROWS)]


def _squared_distances(x: NDArray[np.floating], y: NDArray[np.floating]) -> Floats:
    x, y = x.astype(np.float64), y.astype(np.float64)
    return ((x**2).sum(axis=1)[:, None] + (y**2).sum(axis=1)[None, :] - 2 * x @ y.T).clip(0)


def variety(
    judged: NDArray[np.floating], teacher: NDArray[np.floating], size: int, resampling: Resampling
) -> BootstrapEstimate:
    """How far apart the features [n, d] of pictures of one prompt are, of the teacher's the same: 1 is as far.

    Each `size` in turn are of one prompt; these are what is resampled.
    """
    groups = np.arange(len(judged) // size)
    mine, its = (resampling.mean(_spreads(values, size), groups) for values in (judged, teacher))
    return BootstrapEstimate(mine.draws / its.draws)


def _spreads(values: NDArray[np.floating], size: int) -> Floats:
    """The mean distance within each group of features."""
    groups = values.reshape(-1, size, values.shape[1])
    return np.stack([np.sqrt(_squared_distances(one, one)).sum() / (size * (size - 1)) for one in groups])


def same_noise_distance(judged: Features, teacher: Features, resampling: Resampling) -> BootstrapEstimate:
    """Mean distance between the features of two pictures made of the same noise and prompt."""
    apart = judged.values.astype(np.float64) - teacher.values[: len(judged)].astype(np.float64)
    return resampling.mean(np.linalg.norm(apart, axis=1), judged.units)


def clip_score(judged: Features, texts: NDArray[np.floating], resampling: Resampling) -> BootstrapEstimate:
    """100 times the cosine between each picture and its text [n, d], never below 0 (arXiv:2104.08718, eq. 1)."""
    cosine = (_unit(judged.values) * _unit(texts)).sum(axis=1)
    return resampling.mean(100 * cosine.clip(0), judged.units)


def _unit(values: NDArray[np.floating]) -> Floats:
    return values.astype(np.float64) / np.linalg.norm(values.astype(np.float64), axis=1, keepdims=True)


def units_of(count: int, prompts: int) -> NDArray[np.int64]:
    """The unit of each of `count` samples, prompts taken in turn.

    Prompts are a sample of all that could be asked, so that those are resampled. Classes are all there are: below
    UNITS of them each sample is a unit of its own.
    """
    return np.arange(count) % prompts if prompts >= UNITS else np.arange(count)


def units_of_images(captions: Sequence[str], prompts: Sequence[str], used: int, count: int) -> NDArray[np.int64]:
    """The unit of each of `count` real images, where the judged samples have `used` units.

    Images of one caption share a unit, that of the judged prompt where it is one. Where nothing has a caption, or
    samples are units of their own, each image is.
    """
    if not captions or used > len(prompts):
        return used + np.arange(count)
    units = {prompt: number for number, prompt in enumerate(prompts[:used])}
    return np.array([units.setdefault(caption, len(units)) for caption in captions[:count]])
