"""Calibration: whether a model is right as often as its probabilities say.

Legend: B images, K logits (1 for two classes), H x W pixels. Pixels whose target is IGNORE are never counted.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from unetseg.model.segmenter import class_map
from unetseg.names import IGNORE

if TYPE_CHECKING:
    import pandas as pd

BINS = 15
"""Bins of equal width over 0..1 (Guo et al. 2017)."""


def confidence_counts(logits: Tensor, target: Tensor) -> Tensor:
    """Count the pixels by their confidence, the probability of the class that is predicted.

    Args:
        logits: BxKxHxW float; logarithms of probabilities are logits too.
        target: BxHxW integers, 0 ... C-1 or IGNORE.

    Returns:
        BINSx3 float64, for each bin (low, high]: pixels, the sum of their confidences, and pixels that are right.
    """
    logits = logits.detach().to(torch.promote_types(logits.dtype, torch.float32))
    confidence = logits[:, 0].abs().sigmoid() if logits.shape[1] == 1 else (logits.amax(1) - logits.logsumexp(1)).exp()
    bins = (confidence * BINS).ceil().long().clamp(1, BINS) - 1
    bins = torch.where(target == IGNORE, BINS, bins)
    right = class_map(logits) == target
    counts = []
    for number in range(BINS):  # torch.bincount with weights sums in any order on a GPU
        inside = bins == number
        total = torch.where(inside, confidence, 0).sum(dtype=torch.float64)
        counts.append(torch.stack([inside.sum().double(), total, (inside & right).sum().double()]))
    return torch.stack(counts)


def calibration_table(counts: np.ndarray) -> pd.DataFrame:
    """Return from, to, pixels, confidence (mean) and accuracy (share that is right) of each bin; nan without a pixel.

    Args:
        counts: BINSx3 of `confidence_counts`.
    """
    import pandas as pd

    pixels, confidences, right = counts.T
    edges = np.linspace(0, 1, len(counts) + 1)
    some = np.where(pixels > 0, pixels, np.nan)
    return pd.DataFrame(
        {
            "from": edges[:-1],
            "to": edges[1:],
            "pixels": pixels.astype(np.int64),
            "confidence": confidences / some,
            "accuracy": right / some,
        }
    )


def calibration_error(table: pd.DataFrame) -> float:
    """Return the expected calibration error, 0..1, of a `calibration_table`; nan if no pixel is counted.

    It is the mean distance between confidence and accuracy over the bins, weighted by their pixels (Guo et al. 2017).
    """
    pixels = int(table.pixels.sum())
    if not pixels:
        return math.nan
    return float((table.pixels * (table.confidence - table.accuracy).abs()).sum() / pixels)
