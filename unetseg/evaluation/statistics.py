"""Statistics of scores: what other units of the test set, or another training, would have given.

Settings of an ablation are compared by an analysis of variance, because three seeds are too few to resample.
`docs/statistics.md` shows how often its intervals hold, by the commands of `scripts/coverage.py`.

Legend: S seeds, N units. A unit is an image, or the mean of a group of images (patients, scenes, breeds): the images of
a group are not independent of each other. In a cross-validation a unit is a fold, of which there are K, by the mean of
its images or groups: they are tested by the same trained models.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from scipy.optimize import brentq
from scipy.special import chdtri, nctdtrinc, stdtrit

LEVEL = 0.95
"""Confidence level of every interval; a difference is shown where p < 1 - LEVEL."""
POWER = 0.8
"""Probability of showing a difference of size `Smallest.value`."""
LEAST_P = 1e-12
"""Smaller values of p are given as this one."""


@dataclass(frozen=True)
class Smallest:
    """The smallest difference that could have been shown with POWER; an estimate, as the scores' spread is one."""

    value: float
    low: float
    """The lower end of its own interval at LEVEL."""
    high: float


@dataclass(frozen=True)
class Spread:
    """How far a mean over S seeds and N units may lie from the truth; floats, or arrays of one shape."""

    seeds: Any
    """Variance of the mean by the choice of seeds, 0 with one seed."""
    seeds_freedom: int
    """Degrees of freedom of `seeds`; 0 with one seed."""
    units: Any
    """Variance of the mean by the choice of units, beyond the part that `seeds` contains."""
    units_freedom: int
    floor: Any
    """Variance of the mean by the choice of units alone, for these trained models only."""

    def half_width(self, level: float) -> Any:
        """Return half the width of the interval at 1 - `level`, two-sided.

        The critical value is the mean of the two parts' critical values, weighted by their variances (Cochran 1964).
        The interval is never narrower than the one over the units alone: seeds that agree by luck make no interval
        narrower than that of one model.
        """
        of_seeds = -stdtrit(self.seeds_freedom, level / 2) if self.seeds_freedom else 0.0
        of_units = -stdtrit(self.units_freedom, level / 2)
        return self._weighted(of_seeds, of_units)

    def p(self, difference: float) -> float:
        """Return the level, 0..1, at which the interval around a difference ends at 0; at least LEAST_P."""
        if self.half_width(LEAST_P) <= abs(difference):
            return LEAST_P if difference else 1.0
        low, high = math.log(LEAST_P), 0.0
        return math.exp(brentq(lambda level: float(self.half_width(math.exp(level))) - abs(difference), low, high))

    def smallest(self, level: float = 1 - LEVEL) -> Smallest:
        """Return the least difference that has p < `level` with probability POWER; for 2 seeds or more.

        It follows from the noncentral t of both parts, weighted as in `half_width`. The ends of its interval take each
        part's variance at the ends of that variance's own interval, by chi-square.
        """
        ends = (self._at_quantile(tail).detectable(level) for tail in ((1 - LEVEL) / 2, (1 + LEVEL) / 2))
        return Smallest(self.detectable(level), *ends)

    def _weighted(self, of_seeds: float, of_units: float) -> Any:
        """Return the deviation times the mean of two factors, weighted by the parts; at least the floor's deviation."""
        total = np.sqrt(self.seeds + self.units)
        weighted = (of_seeds * self.seeds + of_units * self.units) / np.where(total > 0, total, 1)
        return np.maximum(weighted, of_units * np.sqrt(self.floor))

    def detectable(self, level: float) -> float:
        """Return the difference whose interval at 1 - `level` excludes 0 with POWER, if the variances are right."""
        freedoms = (self.seeds_freedom, self.units_freedom)
        return float(self._weighted(*(nctdtrinc(n, 1 - POWER, -stdtrit(n, level / 2)) for n in freedoms)))

    def _at_quantile(self, tail: float) -> Spread:
        """Return the true spread if both estimated variances lie at this upper quantile, 0..1."""
        of_seeds, of_units = (n / chdtri(n, tail) for n in (self.seeds_freedom, self.units_freedom))
        return replace(self, seeds=self.seeds * of_seeds, units=self.units * of_units, floor=self.floor * of_units)


@dataclass(frozen=True)
class Components:
    """Variances of the difference of one seed on one unit: by the seed, by the unit, and the rest.

    Examples:
        >>> parts = Components(seeds=1e-4, units=1e-2, rest=1e-3)
        >>> f"{parts.spread(seeds=3, units=100).smallest().value:.3f}"
        '0.042'
    """

    seeds: float
    units: float
    rest: float

    def spread(self, seeds: int, units: int) -> Spread:
        """Return the expected spread of the mean over so many seeds and units, at least 2 of each."""
        of_rest = self.rest / (seeds * units)
        of_units = self.units / units
        return Spread(self.seeds / seeds + of_rest, seeds - 1, of_units, units - 1, of_units + of_rest)

    def at_quantile(self, tail: float, freedom: int, units: int) -> Components:
        """Return the true components if the seeds' variance over `units` lies at this upper quantile, 0..1."""
        over_units = (self.seeds + self.rest / units) * freedom / chdtri(freedom, tail)
        return replace(self, seeds=max(over_units - self.rest / units, 0.0))


@dataclass(frozen=True)
class Comparison:
    """The difference of setting A from setting B, in the scores' own unit.

    Examples:
        >>> a, b = np.array([[0.8, 0.7, 0.9], [0.8, 0.8, 0.9]]), np.array([[0.7, 0.6, 0.7], [0.7, 0.6, 0.8]])
        >>> f"{compare(a, b).difference:.3f}"
        '0.133'
    """

    difference: float
    """mean(a) - mean(b)."""
    low: float
    """The lower end of the interval at LEVEL; 0 lies outside the interval exactly where p < 1 - LEVEL."""
    high: float
    """The upper end; the interval is symmetric about the difference."""
    p: float
    """Two-sided p value of no difference, 0..1, for this one comparison: correct several with `holm`. It is nan for one
    seed: what other units would say of two trained models decides nothing between their settings."""
    seeds: int
    """S."""
    units: int
    """N."""
    spread: Spread


def compare(a: ArrayLike, b: ArrayLike, pooled: tuple[float, int] | None = None, *, folds: bool = False) -> Comparison:
    """Compare two settings that were trained with the same seeds and scored on the same units.

    Seeds and units are crossed random effects: the difference of seed s on unit i is mu + seed_s + unit_i + rest_si,
    and mu is to be estimated. By the mean squares of this two-way layout var(mean) = (MS_seeds + MS_units - MS_rest) /
    (S N), the sum of two parts that are not negative: MS_seeds, the spread of trainings on fixed units, with S - 1
    degrees of freedom, and MS_units - MS_rest, the units' own, with N - 1. `Spread.half_width` makes an interval from
    them. A bootstrap over seeds and units lacks 1/S of the seeds' variance and the tails of t, and counts the variance
    of the rest three times (Owen 2007).

    With one seed the first part is missing and the interval is that of the paired t test over units.

    Args:
        a: SxN scores of setting A, finite.
        b: SxN scores of setting B, of the same seeds and units in the same order.
        pooled: the variance over seeds of the difference and its degrees of freedom, from `pooled_seeds`.
        folds: the units are the folds of a cross-validation, see `spread_of`.

    Raises:
        ValueError: for other shapes, no seed, fewer than 2 units, or a score that is not finite.
    """
    differences = _differences(np.asarray(a, dtype=float), np.asarray(b, dtype=float))
    seeds, units = differences.shape
    mean, spread = float(differences.mean()), spread_of(differences, pooled, folds=folds)
    half_width = float(spread.half_width(1 - LEVEL))
    p = spread.p(mean) if seeds > 1 else math.nan
    return Comparison(mean, mean - half_width, mean + half_width, p, seeds, units, spread)


def spread_of(differences: np.ndarray, pooled: tuple[float, int] | None = None, *, folds: bool = False) -> Spread:
    """Return the spread of the means of ...xSxN differences, arrays of shape ...; `pooled` as in `compare`.

    With `folds` the units are the K folds of a cross-validation, random effects like other units. The training sets of
    two folds share most of their images, so folds are more alike than independent ones, and their variance is taken
    1 + K / (K - 1) times, after Nadeau and Bengio 2003: (1/K + test images / training images) / (1/K). With one seed
    that is their corrected resampled t test. There is no unbiased estimate (Bengio and Grandvalet 2004).
    """
    seeds, units = differences.shape[-2:]
    of_seeds, of_units, of_rest = mean_squares(differences)
    size = seeds * units
    shared = 1 + units / (units - 1) if folds else 1.0
    own, alone = shared * np.maximum(of_units - of_rest, 0) / size, shared * of_units / size
    if pooled is not None and seeds > 1:
        return Spread(pooled[0] / seeds, pooled[1], own, units - 1, alone)
    return Spread(of_seeds / size, seeds - 1, own, units - 1, alone)


def mean_squares(differences: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the mean squares of seeds, units and rest of ...xSxN differences; with 1 seed the first and last are 0."""
    seeds, units = differences.shape[-2:]
    mean = differences.mean((-2, -1), keepdims=True)
    of_seeds, of_units = differences.mean(-1, keepdims=True), differences.mean(-2, keepdims=True)
    rest = differences - of_seeds - of_units + mean
    return (
        units * ((of_seeds - mean) ** 2).sum((-2, -1)) / max(seeds - 1, 1),
        seeds * ((of_units - mean) ** 2).sum((-2, -1)) / (units - 1),
        (rest**2).sum((-2, -1)) / max((seeds - 1) * (units - 1), 1),
    )


def components(differences: np.ndarray) -> Components:
    """Return the estimated variances, none below 0, of SxN differences with at least 2 seeds and 2 units."""
    seeds, units = differences.shape
    of_seeds, of_units, of_rest = map(float, mean_squares(differences))
    return Components(max(of_seeds - of_rest, 0) / units, max(of_units - of_rest, 0) / seeds, of_rest)


def pooled_seeds(scores: np.ndarray) -> tuple[float, int]:
    """Return the variance over seeds of the difference of two settings, and its degrees of freedom, from KxSxN scores.

    The variance is taken as the same for any two of the K settings, so it has (K - 1) (S - 1) degrees of freedom, not
    S - 1. If one setting's trainings spread more than those of the others, its own intervals are too narrow.
    """
    means = scores.mean(-1)
    rest = means - means.mean(0) - means.mean(1, keepdims=True) + means.mean()
    freedom = (means.shape[0] - 1) * (means.shape[1] - 1)
    return 2 * float((rest**2).sum()) / freedom, freedom


def seeds_needed(parts: Components, units: int, difference: float, level: float, most: int = 100) -> int | None:
    """Return how many seeds show a difference with POWER at `level`; None if more than `most` are needed."""
    enough = (n for n in range(2, most + 1) if parts.spread(n, units).detectable(level) <= difference)
    return next(enough, None)


def group_means(scores: np.ndarray, groups: Sequence[Hashable]) -> np.ndarray:
    """Map ...xN scores to the mean of each group of the last axis, ...xG, groups in the order of their names."""
    sums, sizes = _group_sums(np.moveaxis(scores, -1, 0), groups)
    return np.moveaxis(sums, 0, -1) / sizes


def sum_by_unit(counts: np.ndarray, groups: Sequence[Hashable]) -> np.ndarray:
    """Return counts of images, N..., summed by group; as they are if all images are of one group."""
    sums = _group_sums(counts, groups)[0]
    return sums if len(sums) > 1 else counts


def _group_sums(values: np.ndarray, groups: Sequence[Hashable]) -> tuple[np.ndarray, np.ndarray]:
    """Return the sums of N... rows by group, in the order of their names, and the sizes of the groups.

    An image whose group is "" is a group of its own; these come first.
    """
    own = [("group", str(group)) if group != "" else ("", f"{image:012d}") for image, group in enumerate(groups)]
    _, member, sizes = np.unique(own, axis=0, return_inverse=True, return_counts=True)
    starts = np.concatenate([[0], np.cumsum(sizes)[:-1]])
    return np.add.reduceat(values[np.argsort(member, kind="stable")], starts, axis=0), sizes


def holm(p_values: Sequence[float]) -> list[float]:
    """Return the p values of several comparisons, 0..1, corrected for their number, in the order given (Holm 1979).

    A corrected p below 5 % shows a difference. The chance that any comparison shows a difference that isn't there is at
    most 5 %, however the comparisons depend on each other.
    """
    values = np.asarray(p_values, dtype=float)
    order = values.argsort()
    corrected = np.empty_like(values)
    corrected[order] = np.maximum.accumulate(np.minimum(values[order] * np.arange(len(values), 0, -1), 1.0))
    return corrected.tolist()


def holm_levels(p_values: Sequence[float]) -> list[float]:
    """Return for each comparison the level below which its own p would show a difference, given the others' p."""
    values = list(p_values)

    def shown_without(index: int) -> int:
        return sum(p < 1 - LEVEL for p in holm([*values[:index], 1.0, *values[index + 1 :]]))

    return [(1 - LEVEL) / (len(values) - shown_without(index)) for index in range(len(values))]


def resampled_sums(counts: np.ndarray, draws: int = 1000, seed: int = 0) -> np.ndarray:
    """Return `draws` sums, (draws)x..., each of N rows that are drawn with replacement from `counts`, Nx...

    The bootstrap of Efron 1979 for scores that divide sums over images: resample the images, sum, then divide.
    """
    images = len(counts)
    multiplicities = np.random.default_rng(seed).multinomial(images, np.full(images, 1 / images), size=draws)
    return (multiplicities @ counts.reshape(images, -1).astype(float)).reshape(draws, *counts.shape[1:])


def interval(draws: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the ends of the percentile interval at LEVEL over the first axis; draws that are nan are left out."""
    low, high = np.nanquantile(draws, ((1 - LEVEL) / 2, (1 + LEVEL) / 2), axis=0)
    return low, high


def seed_interval(values: Sequence[float]) -> tuple[float, float]:
    """Return the ends of Student's interval at LEVEL of the mean of one value a seed, two or more."""
    half = stdtrit(len(values) - 1, (1 + LEVEL) / 2) * np.std(values, ddof=1) / len(values) ** 0.5
    return float(np.mean(values) - half), float(np.mean(values) + half)


def jackknife(parts: np.ndarray) -> np.ndarray:
    """Return half the width of the interval at LEVEL (Tukey 1958) of statistics; nan of one block.

    Args:
        parts: bx..., their values without each of b blocks in turn.
    """
    blocks = len(parts)
    if blocks < 2:
        return np.full(parts.shape[1:], np.nan)
    spread = (blocks - 1) / blocks * np.square(parts - parts.mean(0)).sum(0)
    return np.asarray(stdtrit(blocks - 1, (1 + LEVEL) / 2) * np.sqrt(spread))


def rates_with_interval(counts: np.ndarray, groups: Sequence[Hashable]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return errors / pixels over all images, B values, and the ends of its interval; nan where there is no pixel.

    Args:
        counts: NxBx2 pixels and errors of each image and band.
        groups: of the N images; if there are several, groups are resampled, else images.
    """
    resampled = resampled_sums(sum_by_unit(counts, groups))
    totals = counts.sum(0)
    counted = totals[:, 0] > 0
    rate, low, high = np.full((3, len(totals)), np.nan)
    rate[counted] = totals[counted, 1] / totals[counted, 0]
    pixels = np.where(resampled[:, counted, 0] > 0, resampled[:, counted, 0], np.nan)
    low[counted], high[counted] = interval(resampled[:, counted, 1] / pixels)
    return rate, low, high


def best_median_worst(scores: np.ndarray, each: int) -> dict[int, str]:
    """Return the positions of the `each` best, median and worst of N scores with their rank, best first.

    With few scores one may have two ranks: then it gets the first of them. A nan has no rank.
    """
    order = np.argsort(-scores, kind="stable")
    order = order[~np.isnan(scores[order])]
    middle = max(0, len(order) // 2 - each // 2)
    ranks = {"best": order[:each], "median": order[middle : middle + each], "worst": order[-each:]}
    rank_of = {int(position): rank for rank, positions in reversed(ranks.items()) for position in positions}
    return {position: rank_of[position] for position in order.tolist() if position in rank_of}


def _differences(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Return a - b, SxN, after a check of both."""
    if a.shape != b.shape:
        raise ValueError(
            f"scores of {a.shape} and {b.shape} (seeds x units) can't be paired: give both settings' scores of the "
            "same seeds and units"
        )
    if a.ndim != 2 or a.shape[0] < 1 or a.shape[1] < 2:
        raise ValueError(f"scores of shape {a.shape}: give seeds x units, at least 1 seed and 2 units")
    infinite = int((~np.isfinite(a)).sum() + (~np.isfinite(b)).sum())
    if infinite:
        raise ValueError(f"{infinite} of {2 * a.size} scores are not finite: leave their units out for both settings")
    return a - b
