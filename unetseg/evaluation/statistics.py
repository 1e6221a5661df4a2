"""Statistics of scores: what other units of the test set, or another training, would have given.

Settings of an ablation are compared by an analysis of variance, because three seeds are too few to resample. What of
it holds how often, `docs/statistics.md` says with the commands of `scripts/coverage.py`.

Legend: S seeds, N units: images, or the means of groups of images (patients, scenes, breeds), which are not independent
of each other within a group.
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
"""Of every interval; 1 - LEVEL is the level at which p shows a difference."""
POWER = 0.8
"""Of showing a difference of size `Smallest.value`."""
LEAST_P = 1e-12
"""Smaller values of p are not told apart."""


@dataclass(frozen=True)
class Smallest:
    """The smallest difference that could have been shown with POWER: an estimate, since the scores' spread is one."""

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
    """What it is known from; 0 with one seed."""
    units: Any
    """Variance of the mean by the choice of units, beyond what the seeds' part holds already."""
    units_freedom: int
    floor: Any
    """Variance of the mean by the choice of units alone, as if these trained models were the only ones."""

    def half(self, level: float) -> Any:
        """Return half the width of the interval at 1 - `level`, two-sided.

        Of the two parts' critical values the mean weighted by their variances (Cochran 1964), and never less than the
        interval over the units alone: seeds that agree by luck make no interval narrower than one model's.
        """
        of_seeds = -stdtrit(self.seeds_freedom, level / 2) if self.seeds_freedom else 0.0
        return self._both(of_seeds, -stdtrit(self.units_freedom, level / 2))

    def p(self, difference: float) -> float:
        """Return the level, 0..1, at which the interval around a difference begins to hold 0; at least LEAST_P."""
        if self.half(LEAST_P) <= abs(difference):
            return LEAST_P if difference else 1.0
        low, high = math.log(LEAST_P), 0.0
        return math.exp(brentq(lambda level: float(self.half(math.exp(level))) - abs(difference), low, high))

    def smallest(self, level: float = 1 - LEVEL) -> Smallest:
        """Return the least difference that p < `level` would have shown in POWER of all sweeps, of at least 2 seeds.

        By the noncentral t of both parts, weighted as in `half`; its interval takes each part's variance at the ends of
        its own interval, by chi-square.
        """
        ends = (self._at(tail)._detected(level) for tail in ((1 - LEVEL) / 2, (1 + LEVEL) / 2))
        return Smallest(self._detected(level), *ends)

    def _both(self, of_seeds: float, of_units: float) -> Any:
        """Return the mean of two multiples of the deviation, weighted by the parts, and no less than the floor's."""
        total = np.sqrt(self.seeds + self.units)
        both = (of_seeds * self.seeds + of_units * self.units) / np.where(total > 0, total, 1)
        return np.maximum(both, of_units * np.sqrt(self.floor))

    def _detected(self, level: float) -> float:
        """Return the difference whose interval at 1 - `level` leaves 0 out with POWER, if the variances are right."""
        freedoms = (self.seeds_freedom, self.units_freedom)
        return float(self._both(*(nctdtrinc(n, 1 - POWER, -stdtrit(n, level / 2)) for n in freedoms)))

    def _at(self, tail: float) -> Spread:
        """Return the spread if both variances were estimated at this upper quantile, 0..1, of what can be drawn."""
        of_seeds, of_units = (n / chdtri(n, tail) for n in (self.seeds_freedom, self.units_freedom))
        return replace(self, seeds=self.seeds * of_seeds, units=self.units * of_units, floor=self.floor * of_units)


@dataclass(frozen=True)
class Components:
    """Variances of the difference of one seed on one unit: by the seed, by the unit, and the rest."""

    seeds: float
    units: float
    rest: float

    def spread(self, seeds: int, units: int) -> Spread:
        """Return the spread to expect of the mean over so many seeds, 2 at least, and units, 2 at least."""
        of_rest = self.rest / (seeds * units)
        of_units = self.units / units
        return Spread(self.seeds / seeds + of_rest, seeds - 1, of_units, units - 1, of_units + of_rest)

    def at(self, tail: float, freedom: int, units: int) -> Components:
        """Return these if the seeds' variance was seen, on `units`, at this upper quantile of what can be drawn."""
        on_these = (self.seeds + self.rest / units) * freedom / chdtri(freedom, tail)
        return replace(self, seeds=max(on_these - self.rest / units, 0.0))


@dataclass(frozen=True)
class Comparison:
    """The difference of setting A from setting B, in the scores' own unit."""

    difference: float
    """mean(a) - mean(b)."""
    low: float
    """The lower end of the interval at LEVEL; 0 lies outside the interval exactly where p < 1 - LEVEL."""
    high: float
    """The upper end; the interval is symmetric about the difference."""
    p: float
    """Two-sided, of no difference, 0..1, for this one comparison: correct several with `holm`. With one seed nan: what
    other units would say of two trained models decides nothing between their settings."""
    seeds: int
    """S."""
    units: int
    """N."""
    spread: Spread


def compare(a: ArrayLike, b: ArrayLike, pooled: tuple[float, int] | None = None) -> Comparison:
    """Compare two settings that were trained with the same seeds and scored on the same units.

    Seeds and units are crossed random effects: the difference of seed s on unit i is mu + seed_s + unit_i + rest_si,
    and mu is the truth asked for. By the mean squares of this two-way layout var(mean) = (MS_seeds + MS_units -
    MS_rest) / (S N), a sum of two parts that are not negative: MS_seeds, the spread of trainings on fixed units, known
    from S - 1 degrees of freedom, and MS_units - MS_rest, the units' own, from N - 1. `Spread.half` makes an interval
    of them. A bootstrap over seeds and units lacks 1/S of the seeds' variance and the tails of t, and counts the
    variance of the rest three times (Owen 2007).

    With one seed the first part is missing and the interval is that of the paired t test over units.

    Args:
        a: SxN scores of setting A, finite.
        b: SxN scores of setting B, of the same seeds and units in the same order.
        pooled: the variance over seeds of the difference and its degrees of freedom, from `pooled_seeds`.

    Raises:
        ValueError: for other shapes, no seed, fewer than 2 units, or a score that is not finite.
    """
    differences = _differences(np.asarray(a, dtype=float), np.asarray(b, dtype=float))
    seeds, units = differences.shape
    mean, spread = float(differences.mean()), spread_of(differences, pooled)
    half = float(spread.half(1 - LEVEL))
    p = spread.p(mean) if seeds > 1 else math.nan
    return Comparison(mean, mean - half, mean + half, p, seeds, units, spread)


def spread_of(differences: np.ndarray, pooled: tuple[float, int] | None = None) -> Spread:
    """Return the spread of the means of ...xSxN differences, arrays of shape ...; `pooled` as in `compare`."""
    seeds, units = differences.shape[-2:]
    of_seeds, of_units, of_rest = mean_squares(differences)
    size = seeds * units
    own = np.maximum(of_units - of_rest, 0) / size
    if pooled is not None and seeds > 1:
        return Spread(pooled[0] / seeds, pooled[1], own, units - 1, of_units / size)
    return Spread(of_seeds / size, seeds - 1, own, units - 1, of_units / size)


def mean_squares(differences: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the mean squares of seeds, units and rest of ...xSxN differences; 1 seed: first and last 0."""
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
    """Return the variances behind SxN differences, of 2 seeds and 2 units at least, none of them below 0."""
    seeds, units = differences.shape
    of_seeds, of_units, of_rest = map(float, mean_squares(differences))
    return Components(max(of_seeds - of_rest, 0) / units, max(of_units - of_rest, 0) / seeds, of_rest)


def pooled_seeds(scores: np.ndarray) -> tuple[float, int]:
    """Return the variance over seeds of the difference of two settings, and its degrees of freedom, from KxSxN scores.

    Taken as the same for any two of the K settings, (K - 1) (S - 1) degrees of freedom know it instead of S - 1. Where
    one setting's trainings spread more than the others', its own intervals are then too narrow.
    """
    means = scores.mean(-1)
    rest = means - means.mean(0) - means.mean(1, keepdims=True) + means.mean()
    freedom = (means.shape[0] - 1) * (means.shape[1] - 1)
    return 2 * float((rest**2).sum()) / freedom, freedom


def seeds_needed(parts: Components, units: int, difference: float, level: float, most: int = 100) -> int | None:
    """Return how many seeds show a difference with POWER at `level`, None where `most` do not."""
    enough = (n for n in range(2, most + 1) if parts.spread(n, units)._detected(level) <= difference)
    return next(enough, None)


def group_means(scores: np.ndarray, groups: Sequence[Hashable]) -> np.ndarray:
    """Return the mean of each group of the last axis, ...xN -> ...xG, groups in the order of their names."""
    sums, sizes = _group_sums(np.moveaxis(scores, -1, 0), groups)
    return np.moveaxis(sums, 0, -1) / sizes


def units_of(counts: np.ndarray, groups: Sequence[Hashable]) -> np.ndarray:
    """Return N... counts of images summed by group, or as they are where all images are of one group."""
    return _group_sums(counts, groups)[0] if len(set(groups)) > 1 else counts


def _group_sums(values: np.ndarray, groups: Sequence[Hashable]) -> tuple[np.ndarray, np.ndarray]:
    """Return the sums of N... rows by group, in the order of their names, and the sizes of the groups."""
    _, member, sizes = np.unique(np.asarray(groups, dtype=str), return_inverse=True, return_counts=True)
    starts = np.concatenate([[0], np.cumsum(sizes)[:-1]])
    return np.add.reduceat(values[np.argsort(member, kind="stable")], starts, axis=0), sizes


def holm(p_values: Sequence[float]) -> list[float]:
    """Return the p values of several comparisons, 0..1, corrected for their number, in the order given (Holm 1979).

    A corrected p below 5 % shows a difference, and the chance that any of them shows one that isn't there is at most
    5 %, however the comparisons depend on each other.
    """
    values = np.asarray(p_values, dtype=float)
    order = values.argsort()
    corrected = np.empty_like(values)
    corrected[order] = np.maximum.accumulate(np.minimum(values[order] * np.arange(len(values), 0, -1), 1.0))
    return corrected.tolist()


def holm_levels(p_values: Sequence[float]) -> list[float]:
    """Return, for each comparison, the level below which its own p would show a difference, the others as they are."""
    values = list(p_values)

    def shown_without(index: int) -> int:
        return sum(p < 1 - LEVEL for p in holm([*values[:index], 1.0, *values[index + 1 :]]))

    return [(1 - LEVEL) / (len(values) - shown_without(index)) for index in range(len(values))]


def resampled_sums(counts: np.ndarray, draws: int = 1000, seed: int = 0) -> np.ndarray:
    """Return `draws` sums of N rows drawn with replacement from the N rows of `counts`, Nx... -> (draws)x...

    The bootstrap of Efron 1979 for scores that divide sums over images: resample the images, sum, then divide.
    """
    images = len(counts)
    times = np.random.default_rng(seed).multinomial(images, np.full(images, 1 / images), size=draws)
    return (times @ counts.reshape(images, -1).astype(float)).reshape(draws, *counts.shape[1:])


def interval(draws: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the ends of the percentile interval at LEVEL over the first axis, of the draws that aren't nan."""
    low, high = np.nanquantile(draws, ((1 - LEVEL) / 2, (1 + LEVEL) / 2), axis=0)
    return low, high


def rates_with_interval(counts: np.ndarray, groups: Sequence[Hashable]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return errors / pixels over all images, B values, and the ends of its interval; nan where there is no pixel.

    Args:
        counts: NxBx2 pixels and errors of each image and band.
        groups: of the N images; where there are several they are resampled, else the images.
    """
    drawn = resampled_sums(units_of(counts, groups))
    totals = counts.sum(0)
    found = totals[:, 0] > 0
    rate, low, high = np.full((3, len(totals)), np.nan)
    rate[found] = totals[found, 1] / totals[found, 0]
    pixels = np.where(drawn[:, found, 0] > 0, drawn[:, found, 0], np.nan)
    low[found], high[found] = interval(drawn[:, found, 1] / pixels)
    return rate, low, high


def best_median_worst(scores: np.ndarray, each: int) -> dict[int, str]:
    """Return the positions of the best, median and worst of N scores, `each` of them, and which they are; best first.

    Of few scores one may be two of these: then it is the first. A nan is none of these.
    """
    order = np.argsort(-scores, kind="stable")
    order = order[~np.isnan(scores[order])]
    middle = max(0, len(order) // 2 - each // 2)
    ranked = {"best": order[:each], "median": order[middle : middle + each], "worst": order[-each:]}
    rank_of = {int(place): rank for rank, places in reversed(ranked.items()) for place in places}
    return {place: rank_of[place] for place in order.tolist() if place in rank_of}


def _differences(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Return a - b, SxN, after a check of both."""
    if a.shape != b.shape:
        raise ValueError(
            f"scores of {a.shape} and {b.shape} (seeds x units) can't be paired: give both settings' scores of the "
            "same seeds and units"
        )
    if a.ndim != 2 or a.shape[0] < 1 or a.shape[1] < 2:
        raise ValueError(f"scores of shape {a.shape}: give seeds x units, at least 1 seed and 2 units")
    bad = int((~np.isfinite(a)).sum() + (~np.isfinite(b)).sum())
    if bad:
        raise ValueError(f"{bad} of {2 * a.size} scores are not finite: leave their units out for both settings")
    return a - b
