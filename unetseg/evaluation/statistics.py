"""Statistics of scores: what another sample of images, or another training, would have given.

Settings of an ablation are compared by an analysis of variance, because three seeds are too few to resample:
`python scripts/coverage.py` counts how often its interval and that of a bootstrap hold the truth.

Legend: S seeds, N images.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy.optimize import brentq
from scipy.special import stdtr

LEVEL = 0.95
"""Of every interval; 1 - LEVEL is the level at which p shows a difference."""
POWER = 0.8
"""Of showing a difference of size `Comparison.smallest`."""


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
    """Two-sided, of no difference, 0..1, for this one comparison: correct several with `holm`."""
    smallest: float
    """The smallest difference that this many seeds and images could have shown: with POWER, at 1 - LEVEL, two-sided
    (Bloom 1995). It has the scores' own spread in it, which three seeds tell no better than within a factor of two."""
    seeds: int
    """S; with 1 the result speaks of other images only, not of another training."""
    images: int
    """N."""


def compare(a: ArrayLike, b: ArrayLike) -> Comparison:
    """Compare two settings that were trained with the same seeds and scored on the same images.

    Seeds and images are crossed random effects: the difference of seed s on image i is mu + seed_s + image_i +
    rest_si, and mu is the truth asked for. By the mean squares of this two-way layout (Satterthwaite 1946)
    var(mean) = (MS_seeds + MS_images - MS_rest) / (S N), a sum of two parts that are not negative: MS_seeds, the spread
    of trainings on fixed images, known from S - 1 degrees of freedom, and MS_images - MS_rest, the images' own, from
    N - 1. With 1 seed the first part is missing and this is the paired t test over images, of these two trained models
    and not of their settings.

    mean / error follows t with S - 1 degrees of freedom where the seeds dominate, with N - 1 where the images do. In
    between its tail is taken as the mean of both tails, weighted by the parts of the variance; Cochran 1964 so weights
    the critical values. Of normal effects this covers 94 to 97 % from three seeds on, and as little as 92 % with two.
    Satterthwaite's pooled degrees of freedom cover as little as 92 % with three and 87 % with two, as they are the
    highest when the seeds happen to agree. A bootstrap over seeds and images lacks 1/S of the seeds' variance and the
    tails of t, and counts the variance of the rest three times (Owen 2007).

    Args:
        a: SxN scores of setting A, finite.
        b: SxN scores of setting B, of the same seeds and images in the same order.

    Raises:
        ValueError: for other shapes, no seed, fewer than 2 images, or a score that is not finite.
    """
    differences = _differences(np.asarray(a, dtype=float), np.asarray(b, dtype=float))
    seeds, images = differences.shape
    mean = float(differences.mean())
    of_seeds, of_images = differences.mean(1, keepdims=True), differences.mean(0)
    rest = differences - of_seeds - of_images + mean
    # of one seed the sums of squares are 0, and so their mean squares
    mean_square_seeds = images * float(((of_seeds - mean) ** 2).sum()) / max(seeds - 1, 1)
    mean_square_images = seeds * float(((of_images - mean) ** 2).sum()) / (images - 1)
    mean_square_rest = float((rest**2).sum()) / max((seeds - 1) * (images - 1), 1)
    parts = ((mean_square_seeds, seeds - 1), (max(mean_square_images - mean_square_rest, 0.0), images - 1))
    total = parts[0][0] + parts[1][0]
    if total == 0:  # every score differs by the same, as where both settings are one
        return Comparison(mean, mean, mean, float(mean == 0), 0.0, seeds, images)
    weights = [(part / total, freedom) for part, freedom in parts if part > 0]
    error = math.sqrt(total / (seeds * images))
    half = error * _critical(1 - LEVEL, weights)
    return Comparison(
        difference=mean,
        low=mean - half,
        high=mean + half,
        p=_two_tails(abs(mean) / error, weights),
        smallest=half + error * _critical(2 * (1 - POWER), weights),
        seeds=seeds,
        images=images,
    )


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


def resampled_sums(counts: np.ndarray, draws: int = 1000, seed: int = 0) -> np.ndarray:
    """Return `draws` sums of N rows drawn with replacement from the N rows of `counts`, Nx... -> (draws)x...

    The bootstrap of Efron 1979 for scores that divide sums over images: resample the images, sum, then divide.
    """
    images = len(counts)
    times = np.random.default_rng(seed).multinomial(images, np.full(images, 1 / images), size=draws)
    return (times @ counts.reshape(images, -1).astype(float)).reshape(draws, *counts.shape[1:])


def interval(draws: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the ends of the percentile interval at LEVEL over the first axis."""
    low, high = np.quantile(draws, ((1 - LEVEL) / 2, (1 + LEVEL) / 2), axis=0)
    return low, high


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


def _two_tails(value: float, weights: Sequence[tuple[float, int]]) -> float:
    """Return the chance of a t beyond +-value, the mean over (weight, degrees of freedom)."""
    return float(sum(weight * 2 * stdtr(freedom, -value) for weight, freedom in weights))


def _critical(level: float, weights: Sequence[tuple[float, int]]) -> float:
    """Return the value beyond which both tails together have `level`; 100 is further out than any here, t_1's 12.7."""
    return float(brentq(lambda value: _two_tails(value, weights) - level, 0, 100))


def _differences(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Return a - b, SxN, after a check of both."""
    if a.shape != b.shape:
        raise ValueError(
            f"scores of {a.shape} and {b.shape} (seeds x images) can't be paired: give both settings' scores of the "
            "same seeds and images"
        )
    if a.ndim != 2 or a.shape[0] < 1 or a.shape[1] < 2:
        raise ValueError(f"scores of shape {a.shape}: give seeds x images, at least 1 seed and 2 images")
    bad = int((~np.isfinite(a)).sum() + (~np.isfinite(b)).sum())
    if bad:
        raise ValueError(f"{bad} of {2 * a.size} scores are not finite: leave their images out for both settings")
    return a - b
