"""From pictures of any size to squares of data.size, with and without augmentation."""

from __future__ import annotations

import os

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
        os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # its import would ask the network for a newer version
        import albumentations as A
        import cv2

        cv2.setNumThreads(0)  # the loader's processes are the parallelism
        # averaging over areas avoids aliasing where a picture is much larger than the target
        steps: list[A.BasicTransform] = [A.Resize(size, size, area_for_downscale="image")]
        if augment:
            steps += [
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
        self.augment = augment
        self.pipeline = A.Compose(steps, strict=True)

    def __call__(self, image: np.ndarray, mask: np.ndarray, key: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
        """Map HxWx3 and HxW uint8 to SxSx3 and SxS uint8; the key, e.g. (seed, epoch, index), decides what is drawn."""
        if self.augment:
            self.pipeline.set_random_seed(int(np.random.SeedSequence(key).generate_state(1)[0]))
        result = self.pipeline(image=image, mask=mask)
        return result["image"], result["mask"]
