"""From pictures of any size to images of size x size, with and without augmentation."""

from __future__ import annotations

import os
import random
from collections.abc import Sequence
from typing import Any, NamedTuple

import cv2
import numpy as np

from unetseg.names import IGNORE

FILL = (124, 116, 104)
"""The mean colour of ImageNet; fills what lies outside a picture that was moved."""
COLOURS = ("brightness", "contrast", "saturation", "hue")
UNCHANGED = (1, 1, 1, 0)
"""The neutral amount of each of COLOURS: three factors, and a share of the colour circle."""


class Augmentation(NamedTuple):
    """The parameters of one picture's augmentation."""

    move: np.ndarray
    """3x3: maps positions (x, y, 1) in the picture to those in the result, in pixels."""
    colours: np.ndarray
    """4x4 float32: four rounds, in each the amounts by which brightness, contrast, saturation and hue change."""


class Transform:
    """Resizes to size x size (not keeping the aspect, as in smp's example) and, if asked, augments.

    Random numbers depend on the caller's key only. albumentations' own state would be copied into every worker process:
    all would draw the same augmentations, and the same ones again in each epoch.

    Args:
        size: S, the side in pixels.
        augment: random flip, scale, rotation, translation and colour.

    Examples:
        >>> transform = Transform(size=32, augment=False)
        >>> image, mask = transform(np.zeros((48, 64, 3), np.uint8), np.zeros((48, 64), np.uint8), key=(0, 0, 0))
        >>> image.shape, mask.shape
        ((32, 32, 3), (32, 32))
    """

    def __init__(self, size: int, augment: bool):
        cv2.setNumThreads(0)  # the loader's processes are the parallelism
        self.size = size
        self.steps = _augmentation() if augment else []

    def resize(self, image: np.ndarray, mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Map an image hxwx3 and a mask HxW, uint8, to SxSx3 and SxS: the part that is the same in every epoch."""
        return resize_image(image, self.size), resize_mask(mask, self.size)

    def __call__(self, image: np.ndarray, mask: np.ndarray, key: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
        """Resize, unless that has been done, and augment by the key, e.g. (seed, epoch, index): to SxSx3 and SxS."""
        image, mask = self.resize(image, mask)
        for step in self._steps(key):
            augmented = step(image=image, mask=mask)
            image, mask = augmented["image"], augmented["mask"]
        return image, mask

    def parameters(self, key: tuple[int, ...]) -> Augmentation:
        """Return the parameters with which __call__ augments a resized image for this key."""
        import albumentations as A

        move = np.eye(3)
        colours = np.tile(np.array(UNCHANGED, np.float32), (len(COLOURS), 1))
        blank = {"image": np.broadcast_to(np.uint8(0), (self.size, self.size, 3))}
        for step in self._steps(key):
            if not step.should_apply():
                continue
            drawn = step.update_transform_params(step.get_params(), blank)
            drawn |= step.get_params_dependent_on_data(drawn, blank)
            if isinstance(step, A.HorizontalFlip):
                move = np.array([[-1, 0, self.size - 1], [0, 1, 0], [0, 0, 1]]) @ move
            elif isinstance(step, A.Affine):
                move = drawn["matrix"] @ move
            else:
                for turn, colour in enumerate(drawn["order"]):
                    colours[turn, colour] = drawn[COLOURS[colour]]
        return Augmentation(move, colours)

    def _steps(self, key: tuple[int, ...]) -> Sequence[Any]:
        """Return albumentations' steps, which all draw from one random generator that is seeded with the key.

        Compose.set_random_seed would give each step a generator of its own with the same seed: a picture that is
        flipped would always be moved and recoloured too.
        """
        rng = np.random.default_rng(key)
        for step in self.steps:
            step.set_random_state(rng, random.Random(int(rng.integers(2**63))))
        return self.steps


def resize_image(image: np.ndarray, size: int) -> np.ndarray:
    """Resize HxWx3 or HxW uint8 to size x size, by areas where a side shrinks to avoid aliasing."""
    height, width = image.shape[:2]
    smaller = (min(width, size), min(height, size))
    if smaller != (width, height):
        # sides that grow are resized afterwards: where one side grows, INTER_AREA interpolates instead
        image = cv2.resize(image, smaller, interpolation=cv2.INTER_AREA)
    return image if smaller == (size, size) else cv2.resize(image, (size, size), interpolation=cv2.INTER_LINEAR)


def resize_mask(mask: np.ndarray, size: int) -> np.ndarray:
    """Resize HxW uint8 classes to size x size: each pixel gets the class of most of its area, IGNORE included.

    The areas are those of `resize_image`.
    """
    if mask.shape == (size, size):
        return mask
    present: list[int] = np.flatnonzero(np.bincount(mask.ravel(), minlength=256)).tolist()
    areas = [resize_image((mask == label).astype(np.uint8) * np.uint8(255), size) for label in present[1:]]
    largest = 255 - sum(area.astype(np.int16) for area in areas)  # the rest belongs to the first class
    resized = np.full((size, size), present[0], np.uint8)
    for label, area in zip(present[1:], areas, strict=True):
        resized[area > largest] = label
        largest = np.maximum(largest, area)
    return resized


def _augmentation() -> Sequence[Any]:
    """Return albumentations' steps, from resized images to the same size."""
    os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # or its import asks the network for a newer version
    import albumentations as A

    return [
        A.HorizontalFlip(p=0.5),
        A.Affine(
            scale=(0.8, 1.25),
            rotate=(-15, 15),
            translate_percent=(-0.08, 0.08),
            fill=FILL,
            fill_mask=IGNORE,  # the default, 0, would teach that the frame is background
            p=0.8,
        ),
        A.ColorJitter((0.8, 1.2), (0.8, 1.2), (0.8, 1.2), (-0.03, 0.03), p=0.8),
    ]
