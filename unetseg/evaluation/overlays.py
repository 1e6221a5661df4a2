"""A picture with its masks, and the errors drawn on it, as arrays."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from unetseg.data.colours import is_background
from unetseg.names import IGNORE

MISSED, INVENTED, CONFUSED = (64, 130, 255), (255, 60, 60), (245, 165, 0)
"""Colours of errors: a class that is missed, one that is predicted where there is none, and one in another's place."""


@dataclass(frozen=True)
class Sample:
    """A picture with its masks, all of one size.

    Examples:
        >>> image, mask = np.zeros((4, 6, 3), np.uint8), np.ones((4, 6), np.uint8)
        >>> Sample("blank", image, target=mask, predicted=mask).predicted.shape
        (4, 6)
    """

    name: str
    image: np.ndarray
    """HxWx3 uint8."""
    target: np.ndarray
    """HxW uint8 classes, IGNORE included."""
    predicted: np.ndarray
    """HxW uint8 classes."""


def errors(image: np.ndarray, target: np.ndarray, predicted: np.ndarray, *, background: bool = True) -> np.ndarray:
    """Return a pale picture, HxWx3 uint8, with the wrong pixels in the colours of `kinds_of_errors`."""
    pale = (0.35 * image + 0.65 * 255).astype(np.uint8)
    wrong = (predicted != target) & (target != IGNORE)
    pale[wrong] = CONFUSED
    if background:
        pale[wrong & (predicted == 0)] = MISSED
        pale[wrong & (target == 0)] = INVENTED
    return pale


def kinds_of_errors(classes: Sequence[str]) -> dict[str, tuple[int, int, int]]:
    """Return the errors that there may be among these classes, with their colours, RGB in 0..255.

    Examples:
        >>> [*kinds_of_errors(["background", "pet"])], [*kinds_of_errors(["sky", "road", "car"])]
        (['missed', 'invented'], ['wrong class'])
    """
    confused = {"wrong class": CONFUSED}
    if not is_background(classes):
        return confused
    return {"missed": MISSED, "invented": INVENTED} | (confused if len(classes) > 2 else {})
