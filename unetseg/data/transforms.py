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
"""The mean colour of ImageNet, for what lies outside a picture that was moved."""
COLOURS = ("brightness", "contrast", "saturation", "hue")
UNCHANGED = (1, 1, 1, 0)
"""What changes nothing about each: three factors, and a share of the circle."""


class Augmentation(NamedTuple):
    """The parameters of one picture's augmentation."""

    move: np.ndarray
    """3x3: maps positions (x, y, 1) in the picture to those in the result, in pixels."""
    colours: np.ndarray
    """4x4 float32: in each of four turns, what the brightness, contrast, saturation and hue are changed by."""


class Transform:
    """Resizes to size x size (not keeping the aspect, as in smp's example) and, if asked, augments.

    Random numbers are drawn from the caller's key alone: albumentations' own state would be copied into every worker
    process, which would then draw the same augmentations, and the same again in each epoch.

    Args:
        size: S, the side in pixels.
        augment: random flip, scale, rotation, translation and colour.
    """

    def __init__(self, size: int, augment: bool):
        cv2.setNumThreads(0)  # the loader's processes are the parallelism
        self.size, self.steps = size, _augmentation() if augment else []

    def resize(self, image: np.ndarray, mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Map an image hxwx3 and a mask HxW, uint8, to SxSx3 and SxS: the part that every epoch has in common."""
        return squashed(image, self.size), majority(mask, self.size)

    def __call__(self, image: np.ndarray, mask: np.ndarray, key: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
        """Map what `resize` takes, or gives, to SxSx3 and SxS; the key, e.g. (seed, epoch, index), decides the rest."""
        image, mask = self.resize(image, mask)
        for step in self._steps(key):
            done = step(image=image, mask=mask)
            image, mask = done["image"], done["mask"]
        return image, mask

    def parameters(self, key: tuple[int, ...]) -> Augmentation:
        """Return what __call__ does to a resized image with this key."""
        import albumentations as A

        move, colours = np.eye(3), np.tile(np.array(UNCHANGED, np.float32), (len(COLOURS), 1))
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
        """Return albumentations' steps, all drawing from one stream of numbers that begins with the key.

        A Compose's set_random_seed would start a stream for each step, all at the same numbers: a picture that is
        flipped would always be moved and recoloured too.
        """
        numbers = np.random.default_rng(key)
        for step in self.steps:
            step.set_random_state(numbers, random.Random(int(numbers.integers(2**63))))
        return self.steps


def squashed(image: np.ndarray, size: int) -> np.ndarray:
    """Resize HxWx3 or HxW uint8 to size x size: by areas where a side shrinks, which avoids aliasing."""
    height, width = image.shape[:2]
    smaller = (min(width, size), min(height, size))
    if smaller != (width, height):
        # the sides that grow come after: with one that does, OpenCV's areas are samples of corners
        image = cv2.resize(image, smaller, interpolation=cv2.INTER_AREA)
    return image if smaller == (size, size) else cv2.resize(image, (size, size), interpolation=cv2.INTER_LINEAR)


def majority(mask: np.ndarray, size: int) -> np.ndarray:
    """Resize HxW uint8 classes, resized as a picture is: to the class of most of each pixel's area, IGNORE included."""
    if mask.shape == (size, size):
        return mask
    present: list[int] = np.flatnonzero(np.bincount(mask.ravel(), minlength=256)).tolist()
    areas = [squashed((mask == label).astype(np.uint8) * np.uint8(255), size) for label in present[1:]]
    most = 255 - sum(area.astype(np.int16) for area in areas)  # what is left is the first one's
    found = np.full((size, size), present[0], np.uint8)
    for label, area in zip(present[1:], areas, strict=True):
        found[area > most] = label
        most = np.maximum(most, area)
    return found


def _augmentation() -> Sequence[Any]:
    """Return albumentations' steps, from resized images to the same size."""
    os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # its import would ask the network for a newer version
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
