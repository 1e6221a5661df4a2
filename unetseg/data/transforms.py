"""From pictures of any size to squares of data.size, with and without augmentation."""

from __future__ import annotations

import os
import random
from typing import Any

import cv2
import numpy as np

from unetseg.config import IGNORE


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
        self.size, self.pipeline = size, _augmentation() if augment else None

    def square(self, image: np.ndarray, mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Map an image hxwx3 and a mask HxW, uint8, to SxSx3 and SxS: the part that every epoch has in common."""
        return squashed(image, self.size), cv2.resize(mask, (self.size, self.size), interpolation=cv2.INTER_NEAREST)

    def __call__(self, image: np.ndarray, mask: np.ndarray, key: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
        """Map what `square` takes, or gives, to SxSx3 and SxS; the key, e.g. (seed, epoch, index), decides the rest."""
        image, mask = self.square(image, mask)
        if self.pipeline is None:
            return image, mask
        # one stream for all steps: set_random_seed would start each step's own at the same numbers, so that a picture
        # that is flipped would always be rotated and recoloured too
        random_numbers = np.random.default_rng(key)
        self.pipeline.set_random_state(random_numbers, random.Random(int(random_numbers.integers(2**63))))
        result = self.pipeline(image=image, mask=mask)
        return result["image"], result["mask"]


def squashed(image: np.ndarray, size: int) -> np.ndarray:
    """Resize HxWx3 uint8 to size x size: by areas where a side shrinks, which avoids aliasing."""
    if image.shape[:2] == (size, size):
        return image
    method = cv2.INTER_AREA if size < max(image.shape[:2]) else cv2.INTER_LINEAR
    return cv2.resize(image, (size, size), interpolation=method)


def _augmentation() -> Any:
    """Return albumentations' pipeline, from squares to squares."""
    os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # its import would ask the network for a newer version
    import albumentations as A

    steps: list[A.BasicTransform] = [
        A.HorizontalFlip(p=0.5),
        A.Affine(
            scale=(0.8, 1.25),
            rotate=(-15, 15),
            translate_percent=(-0.08, 0.08),
            fill=(124, 116, 104),  # the mean colour of ImageNet
            fill_mask=IGNORE,  # the default, 0, would teach that the frame is background
            p=0.8,
        ),
        A.ColorJitter((0.8, 1.2), (0.8, 1.2), (0.8, 1.2), (-0.03, 0.03), p=0.8),
    ]
    return A.Compose(steps, strict=True)
