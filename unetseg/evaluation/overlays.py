"""Masks drawn on pictures, as arrays."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from unetseg.data.colours import class_colours
from unetseg.names import IGNORE

MISSED, INVENTED = (64, 130, 255), (255, 60, 60)
"""Colours of errors: a class that is missed, and a class that is predicted where there is none."""


@dataclass(frozen=True)
class Sample:
    """A picture with its masks, all of one size.

    Examples:
        >>> image, mask = np.zeros((4, 6, 3), np.uint8), np.ones((4, 6), np.uint8)
        >>> sample = Sample("blank", image, target=mask, predicted=mask)
        >>> overlay(sample.image, sample.predicted, opacity=1)[0, 0].tolist()
        [255, 96, 55]
    """

    name: str
    image: np.ndarray
    """HxWx3 uint8."""
    target: np.ndarray
    """HxW uint8 classes, IGNORE included."""
    predicted: np.ndarray
    """HxW uint8 classes."""


def overlay(image: np.ndarray, mask: np.ndarray, opacity: float = 0.55) -> np.ndarray:
    """Return the picture, HxWx3 uint8, tinted by the classes of the mask, HxW; class 0 and IGNORE are not tinted."""
    drawn = (mask > 0) & (mask != IGNORE)
    mixed = (1 - opacity) * image + opacity * class_colours()[mask]
    return np.where(drawn[..., None], mixed, image).astype(np.uint8)


def errors(image: np.ndarray, target: np.ndarray, predicted: np.ndarray) -> np.ndarray:
    """Return a pale picture, HxWx3 uint8, with missed pixels blue and invented ones red."""
    pale = (0.35 * image + 0.65 * 255).astype(np.uint8)
    wrong = (predicted != target) & (target != IGNORE)
    pale[wrong & (target > 0)] = MISSED
    pale[wrong & (target == 0)] = INVENTED
    return pale
