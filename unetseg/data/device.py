"""data.cache=device: a split's resized images lie on the device that trains, and are augmented there.

The loader's processes draw the augmentations' parameters, the very ones that are drawn elsewhere, and send only these.

Legend: N examples of a split, B of a batch, S x S pixels.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import affine_grid, grid_sample

from unetseg.data.cache import Cache
from unetseg.data.dataset import Batch, Examples, Unread, readable
from unetseg.data.pictures import Unreadable
from unetseg.data.transforms import FILL, Augmentation
from unetseg.errors import UserError
from unetseg.names import IGNORE

CHUNK = 256
"""Examples that are copied to the device at a time."""


class AugmentationBatch(NamedTuple):
    """What the loader yields in place of a Batch."""

    split: str
    indices: Tensor
    """B int64: positions in the split."""
    grids: Tensor | None
    """Bx2x3 float32: maps positions in the results to those in the pictures, both in -1..1; None: no augmentation."""
    colours: Tensor | None
    """Bx4x4 float32: see Augmentation."""
    unreadable: Tensor
    """int64: positions of examples that should have been in the batch and could not be read."""


class AugmentationExamples(Examples):
    """Yields, for an (epoch, index), the parameters of the example's augmentation, and not the example."""

    whole: np.ndarray
    """N bool: which examples the device holds; the others could not be read."""

    def __getitem__(self, address: tuple[int, int]) -> tuple[Augmentation | None, int] | Unread:  # type: ignore[override]
        epoch, index = address
        if not self.whole[index]:
            reason = f"{self.examples[index].image} or its mask can't be read as a picture"
            return self.unread(index, Unreadable(reason, advice="replace it, or drop its line"))
        augmented = bool(self.transform.steps)
        return self.transform.parameters((self.seed, epoch, index)) if augmented else None, index


class DeviceImages:
    """The resized images and masks of a split on a device.

    Args:
        split: its name.
        cache: what is copied.
        device: where to.

    Raises:
        UserError: they would take more than half of the memory that a GPU has free.
    """

    def __init__(self, split: str, cache: Cache, device: torch.device):
        records, size = cache.records, cache.size
        if device.type == "cuda":
            needed, free = len(records) * 4 * size**2, torch.cuda.mem_get_info(device)[0]
            if needed > free / 2:
                raise UserError(
                    f"data.cache=device: the {split} split takes {needed:,} bytes, {free:,} of {device} are free",
                    accepted="splits that take at most half of what is free",
                    advice="data.cache=ram",
                )
        self.images = torch.empty(len(records), size, size, 3, dtype=torch.uint8, device=device)
        self.masks = torch.empty(len(records), size, size, dtype=torch.uint8, device=device)
        for start in range(0, len(records), CHUNK):
            part = slice(start, start + CHUNK)
            self.images[part] = torch.from_numpy(np.array(records["image"][part]))
            self.masks[part] = torch.from_numpy(np.array(records["mask"][part]))
        self.whole = np.array(records["whole"])

    @torch.no_grad()
    def batch(self, batch: AugmentationBatch) -> Batch:
        """Return the examples of a batch, augmented."""
        images, masks = self.images[batch.indices].permute(0, 3, 1, 2), self.masks[batch.indices]
        if batch.grids is not None and batch.colours is not None:
            images, masks = moved(images, masks, batch.grids)
            images = recoloured(images, batch.colours).mul(255).round().to(torch.uint8)
        images = images.contiguous(memory_format=torch.channels_last)
        return Batch(images, masks, batch.indices, batch.unreadable)


def collate(split: str, size: int, items: list[tuple[Augmentation | None, int] | Unread]) -> AugmentationBatch:
    """Stack what AugmentationExamples yields; in a loader's process, which has nothing of the device."""
    found, missing = readable(items)
    augmentations = [one for one, _ in found if one is not None]
    grids = colours = None
    if augmentations:
        half = (size - 1) / 2
        pixels = np.array([[half, 0, half], [0, half, half], [0, 0, 1]])  # of positions in -1..1
        moves = np.linalg.inv(np.stack([one.move for one in augmentations]))
        grids = torch.from_numpy(np.linalg.inv(pixels) @ moves @ pixels)[:, :2].float()
        colours = torch.from_numpy(np.stack([one.colours for one in augmentations]))
    return AugmentationBatch(split, torch.tensor([index for _, index in found]), grids, colours, missing)


def moved(images: Tensor, masks: Tensor, grids: Tensor) -> tuple[Tensor, Tensor]:
    """Map images Bx3xSxS uint8 and masks BxSxS uint8 to images in 0..1 and masks, each moved by its Bx2x3 grid."""
    grid = affine_grid(grids, list(images.shape), align_corners=True)
    fill = torch.tensor(FILL, dtype=torch.float32).to(images.device, non_blocking=True).view(1, 3, 1, 1)
    # outside there are zeros: what is moved is the difference to the value that belongs there
    images = grid_sample(images - fill, grid, align_corners=True) + fill
    nearest = grid_sample(masks[:, None].float() - IGNORE, grid, "nearest", align_corners=True)[:, 0] + IGNORE
    return images / 255, nearest.to(torch.uint8)


def recoloured(images: Tensor, colours: Tensor) -> Tensor:
    """Map Bx3xSxS in 0..1 to the same, changed by Bx4x4 numbers in four turns, see Augmentation."""
    from kornia import enhance

    steps = (
        enhance.adjust_brightness_accumulative,
        enhance.adjust_contrast_with_mean_subtraction,
        enhance.adjust_saturation_with_gray_subtraction,
        enhance.adjust_hue,
    )
    circle = torch.tensor((1, 1, 1, 2 * torch.pi)).to(colours.device, non_blocking=True)
    for turn in (colours * circle).unbind(1):
        for step, amounts in zip(steps, turn.unbind(1), strict=True):
            images = step(images, amounts)
    return images
