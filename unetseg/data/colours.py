"""The colours in which classes are drawn."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

PALETTE = np.array(
    [
        *([0, 0, 0], [255, 96, 55], [64, 160, 255], [120, 220, 90], [250, 210, 60], [200, 120, 250]),
        *([0, 128, 128], [240, 50, 230], [128, 0, 0], [70, 240, 240], [154, 99, 36], [0, 0, 160]),
        *([191, 239, 69], [250, 190, 212], [128, 128, 0], [230, 25, 75], [220, 190, 255], [0, 100, 0]),
        *([170, 255, 195], [145, 30, 180], [255, 216, 177], [169, 169, 169], [245, 130, 0], [47, 79, 79]),
    ],
    np.uint8,
)
"""RGB of the classes 0, 1, ...; further ones begin again at 1."""
FIRST = (255, 250, 200)
"""RGB of class 0 where it is a thing of its own."""
BACKGROUND = ("background", "bg", "other", "void", "unlabeled", "unlabelled", "none", "land")
"""Names of a class 0 that is what the others are not, which is left as it is in pictures."""


def class_colours(count: int = 256) -> np.ndarray:
    """Return the colours of the classes 0 ... count - 1, count x 3 uint8 RGB."""
    numbers = np.arange(count)
    return PALETTE[np.where(numbers < len(PALETTE), numbers, (numbers - 1) % (len(PALETTE) - 1) + 1)]


def is_background(classes: Sequence[str]) -> bool:
    """Return whether class 0 is no thing of its own, so that it isn't drawn."""
    return classes[0].lower() in BACKGROUND
