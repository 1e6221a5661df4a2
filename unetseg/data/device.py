"""data.cache=device: a split's resized images are kept on the training device and augmented there.

The loader processes draw the parameters of the augmentations, the same ones as with other caches, and send only these.

Legend: N examples of a split, B of a batch, S x S pixels.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import affine_grid, grid_sample

from unetseg.data.cache import Cache
from unetseg.data.dataset import Batch, Examples, SkippedExample, split_skipped
from unetseg.data.pictures import Unreadable
from unetseg.data.transforms import Augmentation
from unetseg.data.view import COLOUR
from unetseg.errors import UserError
from unetseg.names import IGNORE

CHUNK = 256
"""Examples that are copied to the device at a time."""


class AugmentationBatch(NamedTuple):
    """The parameters of a batch's augmentations; the loader yields it in place of a Batch."""

    split: str
    indices: Tensor
    """B int64: positions in the split."""
    grids: Tensor | None
    """Bx2x3 float32: maps positions in the result to positions in the picture, both in -1..1; None: no augmentation."""
    colours: Tensor | None
    """Bx4x4 float32: see Augmentation."""
    unreadable: Tensor
    """int64: positions of the examples of this batch that could not be read."""


class AugmentationExamples(Examples):
    """Returns for an (epoch, index) the parameters of the example's augmentation in place of the example."""

    whole: np.ndarray
    """N bool: which examples the device holds; the others could not be read."""

    def __getitem__(self, address: tuple[int, int]) -> tuple[Augmentation | None, int] | SkippedExample:  # type: ignore[override]
        epoch, index = address
        if not self.whole[index]:
            reason = f"{self.examples[index].image} or its mask can't be read as a picture"
            return self.skip(index, Unreadable(reason, advice="replace it, or drop its line"))
        augments = bool(self.transform.steps)
        return self.transform.parameters((self.seed, epoch, index)) if augments else None, index


class DeviceImages:
    """The resized images and masks of a split on a device.

    Args:
        split: its name.
        cache: of the examples, which are copied to the device.
        device: the device.

    Raises:
        UserError: they would take more than half of the memory that a GPU has free.
    """

    def __init__(self, split: str, cache: Cache, device: torch.device):
        length, size = len(cache), int(cache.shapes[0][0])
        if device.type == "cuda":
            needed, free = length * 4 * size**2, torch.cuda.mem_get_info(device)[0]
            if needed > free / 2:
                raise UserError(
                    f"data.cache=device: the {split} split takes {needed:,} bytes, {free:,} of {device} are free",
                    accepted="splits that take at most half of what is free",
                    advice="data.cache=ram",
                )
        self.images = torch.zeros(length, size, size, 3, dtype=torch.uint8, device=device)
        self.masks = torch.zeros(length, size, size, dtype=torch.uint8, device=device)
        self.whole = cache.whole
        for start in range(0, length, CHUNK):
            held = np.flatnonzero(self.whole[start : start + CHUNK]) + start
            examples = [cache[index] for index in held.tolist()]
            if examples:
                images, masks = zip(*examples, strict=True)  # type: ignore[arg-type]  # they could be read
                self.images[held] = torch.from_numpy(np.stack(images)).to(device)
                self.masks[held] = torch.from_numpy(np.stack(masks)).to(device)

    @torch.no_grad()
    def batch(self, batch: AugmentationBatch) -> Batch:
        """Return the examples of a batch, augmented."""
        images, masks = self.images[batch.indices].permute(0, 3, 1, 2), self.masks[batch.indices]
        if batch.grids is not None and batch.colours is not None:
            images, masks = warp(images, masks, batch.grids)
            images = adjust_colours(images, batch.colours).mul(255).round().to(torch.uint8)
        images = images.contiguous(memory_format=torch.channels_last)
        return Batch(images, masks, batch.indices, batch.unreadable)


def collate(split: str, size: int, items: list[tuple[Augmentation | None, int] | SkippedExample]) -> AugmentationBatch:
    """Stack the items of AugmentationExamples; runs in a loader process, which does not use the device."""
    drawn, unreadable = split_skipped(items)
    augmentations = [augmentation for augmentation, _ in drawn if augmentation is not None]
    grids = colours = None
    if augmentations:
        half = (size - 1) / 2
        to_pixels = np.array([[half, 0, half], [0, half, half], [0, 0, 1]])  # from positions in -1..1
        inverse_moves = np.linalg.inv(np.stack([augmentation.move for augmentation in augmentations]))
        grids = torch.from_numpy(np.linalg.inv(to_pixels) @ inverse_moves @ to_pixels)[:, :2].float()
        colours = torch.from_numpy(np.stack([augmentation.colours for augmentation in augmentations]))
    return AugmentationBatch(split, torch.tensor([index for _, index in drawn]), grids, colours, unreadable)


def warp(images: Tensor, masks: Tensor, grids: Tensor) -> tuple[Tensor, Tensor]:
    """Map images Bx3xSxS uint8 and masks BxSxS uint8 to images in 0..1 and masks, each moved by its Bx2x3 grid."""
    grid = affine_grid(grids, list(images.shape), align_corners=True)
    fill = torch.tensor(COLOUR, dtype=torch.float32).to(images.device, non_blocking=True).view(1, 3, 1, 1)
    # grid_sample puts zeros outside of a picture: sample the difference to the fill value
    images = grid_sample(images - fill, grid, align_corners=True) + fill
    nearest = grid_sample(masks[:, None].float() - IGNORE, grid, "nearest", align_corners=True)[:, 0] + IGNORE
    return images / 255, nearest.to(torch.uint8)


def adjust_colours(images: Tensor, colours: Tensor) -> Tensor:
    """Map Bx3xSxS in 0..1 to the same shape and range, changed by the Bx4x4 `colours` of Augmentation."""
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
