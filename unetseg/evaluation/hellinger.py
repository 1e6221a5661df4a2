"""How far a network's features of two sets of pictures lie apart, by depth: the Hellinger distance.

Wilm et al. 2024 tell by it how susceptible each layer of a U-Net is to a shift between domains. The distributions here
are histograms of each channel's values at all positions of all pictures.

Legend: D channels of a depth, K = BINS, b blocks of pictures.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from unetseg.data.dataset import Batch
from unetseg.evaluation.mechanisms import blocks_of
from unetseg.evaluation.statistics import jackknife

BINS = 64
"""Bins of a histogram, of equal width; the first and the last have all that lies beyond."""
MOST = 2000
"""Pictures of each set that are compared; of a larger one they are drawn by the run's seed."""
REACH = 4.0
"""Standard deviations from the mean, of both sets together, to the ends of the bins."""

Parts = Callable[[Tensor], dict[str, Tensor]]
"""Maps images, BxCxHxW, to features BxDxhxw by depth."""


@torch.inference_mode()
def measure(
    parts: Parts,
    reference: Iterable[Batch],
    other: Iterable[Batch],
    groups: Sequence[str],
    *,
    track: Callable[..., Iterable[Batch]] = lambda batches, description: batches,
) -> pd.DataFrame:
    """Return the Hellinger distance between the features of two sets, the mean over the channels, by depth.

    Args:
        parts: of a network in eval mode.
        reference: batches of the first set. Both sets are gone through twice.
        other: batches of the second one.
        groups: of all pictures that the indices of the second set tell of.
        track: wraps an iterable, with a description, to show a progress bar.

    Returns:
        depth, channels, the pictures of each set (training_pictures, pictures), `hellinger` in 0..1 with its 95 %
        interval by the jackknife over pictures of the second set, and `within`, the distance between two halves of the
        reference: what the choice of pictures alone brings.
    """
    of_first, first_indices = _moments(parts, track(reference, "features of the training pictures, 1 of 2"))
    of_second, indices = _moments(parts, track(other, "features of the other pictures, 1 of 2"))
    both = {depth: (sums / sums[0] + of_second[depth] / of_second[depth][0]) / 2 for depth, sums in of_first.items()}
    halves = [place % 2 for place in range(len(first_indices))]
    first = _histograms(parts, track(reference, "features of the training pictures, 2 of 2"), both, halves)
    blocks = blocks_of([groups[index] for index in indices])
    second = _histograms(parts, track(other, "features of the other pictures, 2 of 2"), both, blocks)
    rows = []
    for depth, counts in first.items():
        known, seen = counts.sum(0), second[depth].sum(0)
        without = [float(distances(known, seen - block).mean()) for block in second[depth]]
        value, half = float(distances(known, seen).mean()), float(jackknife(np.array(without)))
        ends = {"hellinger_low": value - half, "hellinger_high": value + half}
        within = float(distances(counts[0], counts[-1]).mean()) if len(counts) > 1 else float("nan")
        pictures = {"training_pictures": len(first_indices), "pictures": len(indices)}
        rows.append({"depth": depth, "channels": len(seen), **pictures, "hellinger": value, **ends, "within": within})
    return pd.DataFrame(rows)


def distances(first: Tensor, second: Tensor) -> Tensor:
    """Return the Hellinger distance of each channel's histograms, DxK counts: D numbers in 0..1.

    H = sqrt(1 - sum_k sqrt(p_k q_k)), with p and q the counts' shares.

    Examples:
        >>> distances(torch.tensor([[1.0, 1.0], [3.0, 0.0]]), torch.tensor([[2.0, 2.0], [0.0, 5.0]])).tolist()
        [0.0, 1.0]
    """
    p, q = (own / own.sum(1, keepdim=True) for own in (first, second))
    return (1 - (p * q).sqrt().sum(1)).clamp(min=0).sqrt()


def _moments(parts: Parts, batches: Iterable[Batch]) -> tuple[dict[str, Tensor], list[int]]:
    """Return each depth's 3xD number, sum and sum of squares of its channels' values, and the pictures' indices."""
    moments: dict[str, Tensor] = {}
    indices: list[int] = []
    for batch in batches:
        indices += batch.indices.tolist()
        for depth, features in parts(batch.images).items():
            values = _by_channel(features)
            sums = torch.stack([torch.full_like(values[:, 0], values.shape[1]), values.sum(1), values.square().sum(1)])
            moments[depth] = moments[depth] + sums if depth in moments else sums
    return moments, indices


def _histograms(
    parts: Parts, batches: Iterable[Batch], means: dict[str, Tensor], blocks: Sequence[int]
) -> dict[str, Tensor]:
    """Return each depth's bxDxK counts.

    Args:
        parts: as in `measure`.
        batches: of pictures.
        means: 3xD by depth: 1, and the means of the values and of their squares.
        blocks: of each picture, in the order of the batches.
    """
    counts: dict[str, Tensor] = {}
    place = 0
    for batch in batches:
        own = blocks[place : place + len(batch.indices)]
        place += len(own)
        for depth, features in parts(batch.images).items():
            _, mean, square = means[depth]
            spread = (square - mean.square()).clamp(min=0).sqrt()
            width = torch.where(spread > 0, 2 * REACH * spread / BINS, 1.0)
            rows = BINS * torch.arange(len(mean), device=mean.device)
            if depth not in counts:
                counts[depth] = torch.zeros(max(blocks) + 1, len(mean), BINS, dtype=mean.dtype, device=mean.device)
            for block, picture in zip(own, features.split(1), strict=True):
                bins = ((_by_channel(picture) - mean[:, None]) / width[:, None] + BINS / 2).floor().clamp(0, BINS - 1)
                found = torch.bincount((bins.long() + rows[:, None]).flatten(), minlength=BINS * len(mean))
                counts[depth][block] += found.view(len(mean), BINS)
    return counts


def _by_channel(features: Tensor) -> Tensor:
    """Return BxDxhxw features as Dx(Bhw) in double precision, single on Apple's GPUs, which have no double."""
    flat = features.movedim(1, 0).flatten(1)
    return flat if flat.device.type == "mps" else flat.double()
