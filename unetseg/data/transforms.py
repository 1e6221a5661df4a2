"""From pictures of any size to what a model gets: squares or crops, with and without augmentation.

Legend: H x W pixels of a picture, S side of a square, N side of a crop, C channels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import cv2
import numpy as np

from unetseg.data.augmentation import Augment, draw_from, make_recipe
from unetseg.data.view import RGB, View
from unetseg.names import IGNORE

COLOURS = ("brightness", "contrast", "saturation", "hue")
UNCHANGED = (1, 1, 1, 0)
"""The neutral amount of each of COLOURS: three factors, and a share of the colour circle."""
LOOKED_AT = 2**19
"""Pixels of a mask that are looked at for a rare class: more would take longer than a training step."""
MOST_AT_ONCE = 4
"""Channels that OpenCV resizes by areas at a time."""
CUTTING, RESCALING = 1, 2
"""What is added to a key, so that each use has random numbers of its own."""


class Augmentation(NamedTuple):
    """The parameters of one picture's augmentation."""

    move: np.ndarray
    """3x3: maps positions (x, y, 1) in the picture to those in the result, in pixels."""
    colours: np.ndarray
    """4x4 float32: four rounds, in each the amounts by which brightness, contrast, saturation and hue change."""


class Transform:
    """Makes pictures into the squares or crops of a view and, if asked, augments them.

    Random numbers depend on the caller's key only. albumentations' own state would be copied into every worker process:
    all would draw the same augmentations, and the same ones again in each epoch.

    Args:
        view: how the model sees pictures.
        augment: as data.augment, see `augmentation`.
        foreground: the share of crops that are centred on a pixel of a rare class, 0..1, see `rare_pixel`.

    Examples:
        >>> transform = Transform(View(size=32), augment=False)
        >>> square = transform.resize(np.zeros((48, 64, 3), np.uint8), np.zeros((48, 64), np.uint8))
        >>> image, mask = transform(*square, key=(0, 0, 0))
        >>> image.shape, mask.shape
        ((32, 32, 3), (32, 32))
    """

    def __init__(self, view: View, augment: Augment, foreground: float = 0.0):
        cv2.setNumThreads(0)  # the loader's processes are the parallelism
        self.view, self.foreground = view, foreground
        self.recipe = make_recipe(augment, view)
        self.steps = self.recipe.steps

    def resize(self, image: np.ndarray, mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return an image hxwxC and its mask HxW as the view resizes and pads them: the same in every epoch."""
        height, width = self.view.resized(mask.shape[0], mask.shape[1])
        return fit_image(image, self.view), _framed(resize_mask(mask, height, width), self.view, [IGNORE])

    def __call__(self, image: np.ndarray, mask: np.ndarray, key: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
        """Cut a crop from a resized image and mask, if the view has crops, and augment by the key.

        Args:
            image: hxwxC.
            mask: hxw uint8 classes.
            key: all that is random depends on it, e.g. (seed, epoch, index).

        Returns:
            Image SxSxC and mask SxS, or NxNxC and NxN, in memory of their own.
        """
        if self.view.crop is not None:
            image, mask = self._cut(image, mask, key)
        as_stored = bool(self.steps) and self.view.channels != RGB
        centre = np.array(self.view.fill, np.float32)
        if self.recipe.copies:
            image, mask = image.copy(), mask.copy()
        if as_stored:
            image = image - centre  # so that what is filled with 0 gets the mean
        draw_from(self.steps, key)
        for step in self.steps:
            augmented = step(image=image, mask=mask)
            image, mask = augmented["image"], augmented["mask"]
        if self.recipe.rescales:
            image = self._rescale(image, key)
        if as_stored:
            image = image + centre
        return np.require(image, requirements=["C", "W"]), np.require(mask, requirements=["C", "W"])

    def parameters(self, key: tuple[int, ...]) -> Augmentation:
        """Return the parameters with which __call__ augments a square for this key, of `light` alone."""
        import albumentations as A

        move, size = np.eye(3), self.view.size
        colours = np.tile(np.array(UNCHANGED, np.float32), (len(COLOURS), 1))
        blank = {"image": np.broadcast_to(np.uint8(0), (size, size, 3))}
        draw_from(self.steps, key)
        for step in self.steps:
            if not step.should_apply():
                continue
            drawn = step.update_transform_params(step.get_params(), blank)
            drawn |= step.get_params_dependent_on_data(drawn, blank)
            if isinstance(step, A.HorizontalFlip):
                move = np.array([[-1, 0, size - 1], [0, 1, 0], [0, 0, 1]]) @ move
            elif isinstance(step, A.Affine):
                move = drawn["matrix"] @ move
            else:
                for turn, colour in enumerate(drawn["order"]):
                    colours[turn, colour] = drawn[COLOURS[colour]]
        return Augmentation(move, colours)

    def _cut(self, image: np.ndarray, mask: np.ndarray, key: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
        """Return a random crop; if it is going to be augmented, with the surroundings that may turn into it."""
        side = self.view.crop or 0
        rng = np.random.default_rng((*key, CUTTING))
        centre = rare_pixel(mask, rng) if rng.random() < self.foreground else None
        if centre is None:
            corner = [int(rng.integers(max(1, length - side + 1))) for length in mask.shape]
        else:
            corner = [place - side // 2 for place in centre]
        margin = self.recipe.margin
        # a picture that is smaller than the crop lies in its middle
        inside = [
            min(max(at, 0), length - side) if length > side else (length - side) // 2
            for at, length in zip(corner, mask.shape, strict=True)
        ]
        top, left = (at - margin for at in inside)
        return (
            window(image, top, left, side + 2 * margin, self.view.fill),
            window(mask, top, left, side + 2 * margin, [IGNORE]),
        )

    def _rescale(self, image: np.ndarray, key: tuple[int, ...]) -> np.ndarray:
        """Change brightness and contrast of an HxWxC image about 0, of all channels alike: they are no colours."""
        rng = np.random.default_rng((*key, RESCALING))
        contrast, brightness = rng.uniform(0.8, 1.2), rng.uniform(-0.2, 0.2)
        return image * np.float32(contrast) + np.array(self.view.std, np.float32) * np.float32(brightness)


def fit_image(image: np.ndarray, view: View) -> np.ndarray:
    """Return an image HxWxC as the view resizes and pads it: what both training and prediction give to the model."""
    height, width = view.resized(image.shape[0], image.shape[1])
    return _framed(resize_image(image, height, width), view, view.fill)


def resize_image(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """Resize HxWxC or HxW to height x width, by areas where a side shrinks to avoid aliasing."""
    channels = image.shape[2:]
    if channels and channels[0] > MOST_AT_ONCE:
        starts = range(0, channels[0], MOST_AT_ONCE)
        parts = [resize_image(image[..., start : start + MOST_AT_ONCE], height, width) for start in starts]
        return np.concatenate(parts, axis=-1)
    smaller = (min(image.shape[1], width), min(image.shape[0], height))
    if smaller != image.shape[1::-1]:
        # sides that grow are resized afterwards: where one side grows, INTER_AREA interpolates instead
        image = cv2.resize(image, smaller, interpolation=cv2.INTER_AREA)
    if smaller != (width, height):
        image = cv2.resize(image, (width, height), interpolation=cv2.INTER_LINEAR)
    return image.reshape(height, width, *channels)  # OpenCV drops a single channel


def resize_mask(mask: np.ndarray, height: int, width: int) -> np.ndarray:
    """Resize HxW uint8 classes to height x width: each pixel gets the class of most of its area, IGNORE included.

    The areas are those of `resize_image`.
    """
    if mask.shape == (height, width):
        return mask
    present = classes_in(mask)
    areas = [resize_image((mask == label).astype(np.uint8) * np.uint8(255), height, width) for label in present[1:]]
    largest = 255 - sum(area.astype(np.int16) for area in areas)  # the rest belongs to the first class
    resized = np.full((height, width), present[0], np.uint8)
    for label, area in zip(present[1:], areas, strict=True):
        resized[area > largest] = label
        largest = np.maximum(largest, area)
    return resized


def classes_in(mask: np.ndarray) -> list[int]:
    """Return the values that occur in HxW uint8, in order."""
    return np.flatnonzero(_counts(mask)).tolist()


def rare_pixel(mask: np.ndarray, rng: np.random.Generator) -> tuple[int, int] | None:
    """Return row and column of a pixel of a class that isn't the picture's most frequent one; None if there is none.

    The class is drawn evenly among those, then the pixel evenly among the class's. Of a picture of more than LOOKED_AT
    pixels only every s-th row and column is looked at, from random ones on; all of it where no such class is on them.
    """
    stride = math.isqrt(-(-mask.size // LOOKED_AT) - 1) + 1
    if stride > 1:
        top, left = rng.integers(stride, size=2).tolist()
        found = rare_pixel(np.ascontiguousarray(mask[top::stride, left::stride]), rng)
        if found is not None:
            return found[0] * stride + top, found[1] * stride + left
    counts = _counts(mask)
    counts[IGNORE] = 0
    counts[counts.argmax()] = 0
    others = np.flatnonzero(counts)
    if not others.size:
        return None
    label = int(rng.choice(others))
    places = np.flatnonzero(mask.reshape(-1) == label)
    place = int(places[rng.integers(len(places))])
    return place // mask.shape[1], place % mask.shape[1]


def window(array: np.ndarray, top: int, left: int, side: int, fill: Sequence[float]) -> np.ndarray:
    """Return side x side of HxWxC or HxW from top and left on; what lies outside of it is filled, C values."""
    rows, columns = (
        slice(max(start, 0), max(min(start + side, length), 0))
        for start, length in zip((top, left), array.shape, strict=False)
    )
    part = array[rows, columns]
    if part.shape[:2] == (side, side):
        return part
    cut = np.empty((side, side, *array.shape[2:]), array.dtype)
    cut[...] = fill if array.ndim == 3 else fill[0]
    down, across = max(-top, 0), max(-left, 0)
    cut[down : down + part.shape[0], across : across + part.shape[1]] = part
    return cut


def _framed(array: np.ndarray, view: View, fill: Sequence[float]) -> np.ndarray:
    """Return what was resized in the middle of its square; where nothing is padded, as it is."""
    if view.crop is not None or view.fit == "squash":
        return array
    height, width = array.shape[:2]
    return window(array, -((view.size - height) // 2), -((view.size - width) // 2), view.size, fill)


def _counts(mask: np.ndarray) -> np.ndarray:
    """Return the pixels of each of the 256 values, 256 float32, in a tenth of the time of numpy's bincount."""
    return cv2.calcHist([mask], [0], None, [256], [0, 256]).reshape(-1)
