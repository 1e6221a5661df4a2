"""Which pixels lie between two objects: the weight map of Ronneberger et al. (2015, U-Net), equation 2."""

from __future__ import annotations

import cv2
import numpy as np

from unetseg.names import IGNORE

SIGMA = 5.0
"""Pixels, as in the paper."""
REACH = 6
"""Sigmas beyond which the map is taken as 0, where it is below 2e-8."""


def boundary_map(mask: np.ndarray, sigma: float = SIGMA) -> np.ndarray:
    """Return exp(-(d_1 + d_2)^2 / (2 sigma^2)) of each pixel: near 1 between two objects that touch.

    d_1 and d_2 are the distances in pixels to the nearest and the second nearest object, 0 in the object itself. An
    object is a connected part (with diagonals) of a class but the class 0. Where a mask has fewer than two, all is 0.

    Args:
        mask: HxW classes, uint8; IGNORE is no object.
        sigma: in pixels.

    Returns:
        HxW float32 in 0..1.

    Examples:
        >>> boundary_map(np.array([[1, 0, 1]], np.uint8)).tolist()  # exp(-2^2 / 50)
        [[0.9231163859367371, 0.9231163859367371, 0.9231163859367371]]
    """
    nearest, second = np.full((2, *mask.shape), np.inf, np.float32)  # squares of the distances
    reach = int(np.ceil(REACH * sigma))
    for label in np.unique(mask):
        if label in (0, IGNORE):
            continue
        _, parts, boxes, _ = cv2.connectedComponentsWithStats((mask == label).astype(np.uint8), connectivity=8)
        for part, (left, top, width, height, _) in enumerate(boxes[1:], start=1):
            rows = slice(max(0, top - reach), top + height + reach)
            columns = slice(max(0, left - reach), left + width + reach)
            outside = (parts[rows, columns] != part).astype(np.uint8)
            distance = cv2.distanceTransform(outside, cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
            square = np.rint(distance * distance)  # OpenCV's last bit differs with an array's place in memory
            first = nearest[rows, columns]
            second[rows, columns] = np.minimum(second[rows, columns], np.maximum(first, square))
            nearest[rows, columns] = np.minimum(first, square)
    return np.exp(-((np.sqrt(nearest) + np.sqrt(second)) ** 2) / (2 * sigma**2))
