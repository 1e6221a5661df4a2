"""Alternatives measured in turns: machines are shared and noisy, so what counts is the ratio within a round."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np
import torch


class Spread(NamedTuple):
    """The median over the rounds, and the range of their middle half or of all of them."""

    median: float
    low: float
    high: float


def spread(values: np.ndarray, *, whole: bool = False) -> Spread:
    """Return the median of the rounds' values with the range of the middle half, or of all rounds where few."""
    low, middle, high = np.percentile(values, (0, 50, 100) if whole else (25, 50, 75))
    return Spread(float(middle), float(low), float(high))


def timed(work: Callable[[], object], pause: float = 0.0) -> Callable[[], float]:
    """Return a function that does the work and returns the seconds until it is done.

    Args:
        work: what is timed.
        pause: seconds before it, until threads that others have left spinning sleep.
    """

    def seconds() -> float:
        wait()
        time.sleep(pause)
        start = time.perf_counter()
        work()
        wait()
        return time.perf_counter() - start

    return seconds


def wait() -> None:
    """Wait until the accelerator, where there is one, has done what it was given."""
    if torch.accelerator.is_available():
        torch.accelerator.synchronize()


def interleaved(kinds: Mapping[str, Callable[[], float]], rounds: int, *, warm_up: int = 1) -> dict[str, np.ndarray]:
    """Return what each kind measures (seconds, images/s, ...), one for each round; `warm_up` rounds go before.

    The order is drawn anew in each round, the same for the same kinds: what one leaves behind, such as threads that
    spin or a process that still writes, is no other's lot in all of them.
    """
    measured: dict[str, list[float]] = {kind: [] for kind in kinds}
    generator, names = np.random.default_rng(0), [*kinds]
    for _ in range(warm_up + rounds):
        for position in generator.permutation(len(names)):
            measured[names[position]].append(kinds[names[position]]())
    return {kind: np.array(values[warm_up:]) for kind, values in measured.items()}


def exponent(quantities: np.ndarray, seconds: np.ndarray) -> float:
    """Return b of the fit seconds = a * quantity^b by least squares in logarithms; 1 is linear growth."""
    return float(np.polyfit(np.log(quantities), np.log(seconds), 1)[0])
