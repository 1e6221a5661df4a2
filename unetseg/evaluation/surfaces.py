"""How far a predicted surface lies from the true one: HD95 and NSD, as MONAI computes them.

A class's surface are its pixels beside a pixel of another class, above, below, left or right of it, and those at the
border of the picture. Distances are Euclidean, in pixels, from each pixel of one surface to the nearest of the other.

Legend: B images, C classes, H x W pixels.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from scipy.spatial import cKDTree
from torch import Tensor

from unetseg.names import IGNORE

if TYPE_CHECKING:
    import pandas as pd

TOLERANCE = 2.0
"""Pixels by which a surface may be off, unless another tolerance is asked for."""
PERCENTILE = 95
"""The percentile of the distances: the greatest one is often that of a single stray pixel."""


def surface_scores(predicted: Tensor, target: Tensor, classes: int, tolerance: float = TOLERANCE) -> np.ndarray:
    """Return HD95 and NSD of each image and class, BxCx2 float64.

    HD95 (pixels) is the greater of two 95th percentiles: of the distances from the predicted surface to the true one,
    and of those from the true to the predicted one. NSD (0..1) is the share of both surfaces' pixels that lie at most
    `tolerance` from the other surface (Nikolov et al. 2018). Where only one of the masks has the class, HD95 is inf and
    NSD 0. Where no surface is counted both are nan.

    In place of ignored pixels the target has the predicted class, so that they make no difference between the two
    surfaces; their own surface pixels are not counted.

    Args:
        predicted: BxHxW integers, 0 ... C-1.
        target: BxHxW integers, 0 ... C-1 or IGNORE.
        classes: C.
        tolerance: in pixels, 0 or more.
    """
    found = np.full((len(target), classes, 2), np.nan)
    for image, (labels, truth) in enumerate(zip(predicted.cpu().numpy(), target.cpu().numpy(), strict=True)):
        counted = truth != IGNORE
        filled = np.where(counted, truth, labels)
        for label in np.union1d(labels, filled):
            surfaces = surface(labels == label), surface(filled == label)
            found[image, label] = _hd95_and_nsd(*surfaces, counted, tolerance)
    return found


def surface(mask: np.ndarray) -> np.ndarray:
    """Return the pixels of a mask, HxW booleans, with a neighbour outside of it or of the picture."""
    padded = np.pad(mask, 1)
    inside = padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
    return mask & ~inside


def _hd95_and_nsd(
    predicted: np.ndarray, true: np.ndarray, counted: np.ndarray, tolerance: float
) -> tuple[float, float]:
    """Return the two scores of two surfaces, HxW booleans, of which the `counted` pixels count."""
    both = predicted & counted, true & counted
    if not (both[0] | both[1]).any():
        return np.nan, np.nan
    if not predicted.any() or not true.any():
        return np.inf, 0.0
    distances = [_distances(both[0], true), _distances(both[1], predicted)]
    pixels = sum(map(len, distances))
    hd95 = max(float(np.percentile(one_way, PERCENTILE)) for one_way in distances if len(one_way))
    return hd95, sum(int((one_way <= tolerance).sum()) for one_way in distances) / pixels


def _distances(pixels: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Return the distance from each of some pixels to the nearest of others, both HxW booleans."""
    # pixels of a surface are few: a tree takes half of the time of a distance transform of the whole picture
    return cKDTree(np.argwhere(others)).query(np.argwhere(pixels))[0]


def means_over_classes(found: np.ndarray) -> np.ndarray:
    """Return the scores of each image, Bx2, from those of its classes, BxCx2.

    With two classes these are the scores of class 1, the foreground; with more, the means over the classes that have
    one. An HD95 that is inf is left out. Where no class is left a score is nan.
    """
    return _finite_means(found[:, 1:] if found.shape[1] == 2 else found, axis=1)


def surface_table(found: np.ndarray) -> pd.DataFrame:
    """Return the mean scores of each class over the images, and how many images each mean is of.

    Args:
        found: NxCx2 scores of N images.

    Returns:
        A row for each class: hd95 and hd95_images (those where both masks have the class), nsd and nsd_images (those
        where one of them has it); nan where there is no such image.
    """
    import pandas as pd

    means = _finite_means(found, axis=0)
    images = np.isfinite(found).sum(0)
    return pd.DataFrame(
        {"hd95": means[:, 0], "hd95_images": images[:, 0], "nsd": means[:, 1], "nsd_images": images[:, 1]}
    )


def set_scores(found: np.ndarray) -> dict[str, float]:
    """Return the scores of a set: the means over its classes of `surface_table`, for two classes those of class 1.

    Args:
        found: NxCx2 scores of N images.

    Returns:
        hd95, hd95_images, nsd, nsd_images: each score, and the number of images that have one.
    """
    over_images = _finite_means(found, axis=0)
    hd95, nsd = means_over_classes(over_images[None])[0]
    hd95_images, nsd_images = np.isfinite(means_over_classes(found)).sum(0)
    return {"hd95": float(hd95), "hd95_images": int(hd95_images), "nsd": float(nsd), "nsd_images": int(nsd_images)}


def _finite_means(values: np.ndarray, axis: int) -> np.ndarray:
    """Return the means of the finite values along an axis; nan where there are none."""
    finite = np.isfinite(values)
    count = finite.sum(axis)
    total = np.where(finite, values, 0).sum(axis)
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)
