"""Classes drawn on pictures, their colours, and the one rule on class 0: it is drawn unless its name is background."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np

from unetseg.names import IGNORE

PALETTE = np.array(
    [
        *([0, 0, 0], [255, 96, 55], [64, 160, 255], [120, 220, 90], [250, 210, 60], [200, 120, 250]),
        *([0, 128, 128], [240, 50, 230], [128, 0, 0], [70, 240, 240], [154, 99, 36], [0, 0, 160]),
        *([191, 239, 69], [250, 190, 212], [128, 128, 0], [230, 25, 75], [220, 190, 255], [0, 100, 0]),
        *([170, 255, 195], [145, 30, 180], [205, 170, 125], [169, 169, 169], [245, 130, 0], [47, 79, 79]),
    ],
    np.uint8,
)
"""RGB of the classes 0, 1, ...; further ones begin again at 1."""
FIRST = (255, 240, 170)
"""RGB of class 0 where it is a thing of its own."""
DARK = 90
"""The mean of RGB below which a colour is outlined in white."""
BACKGROUND = ("background", "bg", "other", "void", "unlabeled", "unlabelled", "none", "land")
"""Names of a class 0 that is what the others are not, which is left as it is in pictures."""


def class_colours(count: int = 256, *, background: bool = True) -> np.ndarray:
    """Return the colours of the classes 0 ... count - 1, count x 3 uint8 RGB.

    Args:
        count: number of classes.
        background: whether class 0 is the background, see `is_background`.
    """
    numbers = np.arange(count)
    colours = PALETTE[np.where(numbers < len(PALETTE), numbers, (numbers - 1) % (len(PALETTE) - 1) + 1)]
    if not background:
        colours[0] = FIRST
    return colours


def is_background(classes: Sequence[str]) -> bool:
    """Return whether class 0 is no thing of its own, so that it isn't drawn."""
    return classes[0].lower() in BACKGROUND


def legend(classes: Sequence[str]) -> list[tuple[str, tuple[int, int, int]]]:
    """Return the name and the colour, RGB in 0..255, of each class that is drawn, in the classes' order.

    Examples:
        >>> legend(["background", "pet"])
        [('pet', (255, 96, 55))]
    """
    background = is_background(classes)
    colours = [(red, green, blue) for red, green, blue in class_colours(len(classes), background=background).tolist()]
    return [*zip(classes, colours, strict=True)][background:]


def overlay(
    image: np.ndarray, mask: np.ndarray, opacity: float = 0.55, *, background: bool = True, outlined: bool = True
) -> np.ndarray:
    """Return the picture, HxWx3 uint8, tinted by the classes of the mask, HxW; IGNORE is not tinted.

    What is tinted has an outline, a pixel wide and beside it: black around light colours and white around dark ones, so
    that one of the two stands out on a picture of any colour. Two classes that touch have none between them.

    Args:
        image: HxWx3 uint8.
        mask: HxW uint8 classes, IGNORE included.
        opacity: of the tint, 0..1.
        background: class 0 is the background, which isn't tinted either; see `is_background`.
        outlined: draw the outline.
    """
    colours = class_colours(background=background)
    drawn = (mask >= background) & (mask != IGNORE)
    mixed = np.where(drawn[..., None], (1 - opacity) * image + opacity * colours[mask], image).astype(np.uint8)
    if outlined:
        beside = cv2.dilate(np.where(drawn, mask + 1, 0).astype(np.uint8), np.ones((3, 3), np.uint8))
        edge = ~drawn & (beside > 0)
        is_dark = colours.mean(axis=1) < DARK
        mixed[edge] = np.where(is_dark[beside[edge] - 1], 255, 0)[:, None]
    return mixed
