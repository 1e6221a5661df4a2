"""The augmentation `light` in three libraries: images/s of one core, whether masks follow, and draws from a key.

albumentations is as we call it, picture by picture, torchvision's transforms.v2 the same; kornia gets a batch at once.
All have the same steps with the same ranges and probabilities on 8-bit RGB with a mask, on one thread.
"""

from __future__ import annotations

from collections.abc import Callable

import cv2
import numpy as np
import torch
from kornia import augmentation as kornia
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms import InterpolationMode, v2

from benchmarks.comparison import interleaved, spread, timed
from benchmarks.report import Result, Row, listed
from unetseg.data.augmentation import SCALES, TURN
from unetseg.data.transforms import Transform
from unetseg.data.view import COLOUR, View
from unetseg.names import IGNORE

SHIFT, COLOURS, HUE = 0.08, (0.8, 1.2), (-0.03, 0.03)
"""What `light` has besides TURN and SCALES."""

Pairs = tuple[np.ndarray, np.ndarray]
"""Images BxSxSx3 uint8 and masks BxSxS uint8."""


def albumentations_light(size: int, colours: bool = True) -> Callable[[Pairs, int], Pairs]:
    """Return our own transform, for a batch and the epoch from which its key is made."""
    transform = Transform(View(size), augment="light")
    transform.steps = transform.steps if colours else transform.steps[:-1]

    def augment(pairs: Pairs, epoch: int) -> Pairs:
        results = [transform(*pair, (0, epoch, index)) for index, pair in enumerate(zip(*pairs, strict=True))]
        images, masks = zip(*results, strict=True)
        return np.stack(images), np.stack(masks)

    return augment


def torchvision_light(size: int, colours: bool = True) -> Callable[[Pairs, int], Pairs]:
    """Return the same of torchvision, which draws from torch's own state: it is seeded for each picture."""
    affine = v2.RandomAffine(
        TURN,
        (SHIFT, SHIFT),
        SCALES,
        interpolation=InterpolationMode.BILINEAR,
        fill={tv_tensors.Image: COLOUR, tv_tensors.Mask: IGNORE},
    )
    jitter = v2.RandomApply([v2.ColorJitter(COLOURS, COLOURS, COLOURS, HUE)], 0.8 if colours else 0)
    steps = v2.Compose([v2.RandomHorizontalFlip(0.5), v2.RandomApply([affine], 0.8), jitter])

    def augment(pairs: Pairs, epoch: int) -> Pairs:
        results = []
        for index, (image, mask) in enumerate(zip(*pairs, strict=True)):
            torch.manual_seed(epoch << 20 | index)
            planes = tv_tensors.Image(torch.from_numpy(image).permute(2, 0, 1))
            results.append(steps(planes, tv_tensors.Mask(torch.from_numpy(mask))))
        images, masks = zip(*results, strict=True)
        return torch.stack(images).permute(0, 2, 3, 1).numpy(), torch.stack(masks).numpy()

    return augment


def kornia_light(size: int, colours: bool = True) -> Callable[[Pairs, int], Pairs]:
    """Return the same of kornia. It moves in zeros: IGNORE is taken off the mask before, and the mean put in after."""
    affine = kornia.RandomAffine(TURN, (SHIFT, SHIFT), SCALES, p=0.8)
    jitter = kornia.ColorJitter(COLOURS, COLOURS, COLOURS, HUE, p=0.8 if colours else 0.0)
    steps = kornia.AugmentationSequential(
        kornia.RandomHorizontalFlip(p=0.5),
        affine,
        jitter,
        data_keys=["input", "mask"],
    )
    centre = torch.tensor(COLOUR).view(1, 3, 1, 1) / 255

    def augment(pairs: Pairs, epoch: int) -> Pairs:
        torch.manual_seed(epoch)
        images: Tensor = torch.from_numpy(pairs[0]).permute(0, 3, 1, 2) / 255
        masks = torch.from_numpy(pairs[1])[:, None].float() - IGNORE
        with torch.no_grad():
            moved, classes = steps(images, masks)
        outside = classes == 0
        moved = torch.where(outside, centre, moved)
        moved = (moved.clamp(0, 1) * 255).round().to(torch.uint8).permute(0, 2, 3, 1)
        return moved.numpy(), (classes + IGNORE).round().to(torch.uint8)[:, 0].numpy()

    return augment


LIBRARIES: dict[str, Callable[..., Callable[[Pairs, int], Pairs]]] = {
    "albumentations": albumentations_light,
    "torchvision.transforms.v2": torchvision_light,
    "kornia": kornia_light,
}
BATCH, SIZES = 16, (128, 256)
MOST = 200
"""Classes of the masks that are judged, from 20 on, below IGNORE."""


EPOCHS = 4
"""Batches of a round."""
KEYS = 20
"""Batches on which the masks are judged."""


def follow(work: Callable[[Pairs, int], Pairs], size: int) -> Row:
    """Return how far masks lie from their pictures, where nothing but moves is done.

    The pictures' values are the masks' classes, which grow to the right by 1 a pixel, which interpolation keeps: by
    nearest neighbour a mask is off by half a pixel at most, and by nothing on average.
    """
    classes = np.broadcast_to(
        np.arange(size).clip(0, MOST - 1).astype(np.uint8) + np.uint8(20), (BATCH, size, size)
    ).copy()
    images = np.repeat(classes[..., None], 3, axis=3)
    offsets, strange, ignored = [], 0, []
    for epoch in range(KEYS):
        moved, masks = work((images, classes), epoch)
        for image, mask in zip(moved, masks, strict=True):
            outside = mask == IGNORE
            # the picture's frame is a mixture with what lies outside of it
            inside = cv2.erode((~outside).astype(np.uint8), np.ones((5, 5)), borderValue=0) > 0
            offsets.append(mask.astype(float)[inside] - image[..., 0][inside])
            strange += int((~outside & ((mask < 20) | (mask >= 20 + MOST))).sum())
            ignored.append(outside.mean())
    off = np.concatenate(offsets)
    return {
        "mask off by, px": f"{off.mean():+.3f}",
        "at most": f"{np.abs(off).max():.2f}",
        "pixels of no class": str(strange),
        "% ignored": f"{100 * np.mean(ignored):.1f}",
    }


def measure(rounds: int) -> Result:
    """Return images/s of each library at each size, its ratio to albumentations, and what its masks are like."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    tables: list[list[Row]] = []
    measured: dict[str, np.ndarray] = {}
    try:
        for size in SIZES:
            rng = np.random.default_rng(0)
            pairs = (
                rng.integers(0, 256, (BATCH, size, size, 3), np.uint8),
                rng.integers(0, 2, (BATCH, size, size), np.uint8),
            )
            made = {name: make(size) for name, make in LIBRARIES.items()}
            seconds = interleaved({name: timed(_epochs(work, pairs)) for name, work in made.items()}, rounds)
            first = seconds["albumentations"]
            tables.append(
                [
                    {
                        "": name,
                        "px": str(size),
                        "images/s": spread(EPOCHS * BATCH / seconds[name]),
                        "times albumentations": spread(first / seconds[name]),
                        "same key, same result": _repeats(work, pairs),
                        **follow(LIBRARIES[name](size, colours=False), size),
                    }
                    for name, work in made.items()
                ]
            )
            measured |= {f"{name}, {size} px": values for name, values in seconds.items()}
    finally:
        torch.set_num_threads(threads)
    setting = f"light, batches of {BATCH} pictures, one thread, {rounds} interleaved rounds, range of the middle half"
    return Result(setting, tables, listed(measured, "s"))


def _epochs(work: Callable[[Pairs, int], Pairs], pairs: Pairs) -> Callable[[], None]:
    def run() -> None:
        for epoch in range(EPOCHS):
            work(pairs, epoch)

    return run


def _repeats(work: Callable[[Pairs, int], Pairs], pairs: Pairs) -> str:
    first = work(pairs, 7)
    work(pairs, 8)
    again = work(pairs, 7)
    return "yes" if all(np.array_equal(one, two) for one, two in zip(first, again, strict=True)) else "no"
