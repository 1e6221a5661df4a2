"""Statistics of scores: what another sample of images would have given."""

from __future__ import annotations

import numpy as np

LEVEL = 0.95
"""Of every interval."""


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
