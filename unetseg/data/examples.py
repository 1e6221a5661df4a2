"""What a data set is once its files have been found, and how one example of it is read."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from unetseg.config import UserError

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp")
INVALID = 254
"""Marks mask values without a meaning in a value table; classes go from 0 to 253, 255 is IGNORE."""


@dataclass(frozen=True)
class Example:
    """One picture and its mask, as files."""

    name: str
    image: Path
    mask: Path
    group: str
    """What results are broken down by: the breed in Pets, empty where there is none."""


@dataclass(frozen=True)
class Collection:
    """A data set: its classes, what its mask values mean, and the examples of each split."""

    classes: tuple[str, ...]
    values: np.ndarray
    """256 uint8: the class of each mask value, IGNORE, or INVALID."""
    splits: dict[str, list[Example]]
    """train, val and test."""


def read_image(path: Path) -> np.ndarray:
    """Return a picture as HxWx3 uint8 RGB, whatever format its bytes are in."""
    with _naming(path), Image.open(path) as picture:
        return np.array(picture.convert("RGB"))  # a copy: torch wants to own its memory


def read_mask(path: Path, values: np.ndarray) -> np.ndarray:
    """Return a mask as HxW uint8 classes (IGNORE included), its values translated by the table of a Collection."""
    with _naming(path), Image.open(path) as picture:
        if picture.mode not in ("L", "P", "1"):
            raise UserError(
                f"{path} is a mask of mode {picture.mode}\n"
                "  accepted: one channel of 8 bits or less (grey or palette) with the class as the value"
            )
        raw = np.asarray(picture).astype(np.uint8)  # a palette picture gives its indices, a bilevel one 0 and 1
    mask = values[raw]
    if (mask == INVALID).any():
        strange = np.unique(raw[mask == INVALID])[:5].tolist()
        accepted = np.flatnonzero(values != INVALID).tolist()
        raise UserError(
            f"{path} has the value {', '.join(map(str, strange))}\n  accepted: {', '.join(map(str, accepted))}\n"
            "  try: data.classes with a name for each value, or data.ignore_index"
        )
    return mask


def check_headers(examples: Sequence[Example]) -> None:
    """Read the headers of all files, before training starts: raises UserError on the first that can't be right."""

    def check(example: Example) -> None:
        sizes = []
        for path in (example.image, example.mask):
            with _naming(path), Image.open(path) as picture:
                sizes.append(picture.size)
        if sizes[0] != sizes[1]:
            raise UserError(
                f"{example.mask} is {sizes[1][0]}x{sizes[1][1]}, its picture {example.image} "
                f"{sizes[0][0]}x{sizes[0][1]}\n  accepted: a mask of the picture's size"
            )

    with ThreadPoolExecutor(8) as pool:
        for _ in pool.map(check, examples):
            pass


def missing_layout(root: Path, parts: Sequence[str]) -> list[str]:
    """Return the parts of a layout (files or folders under root) that do not exist."""
    return [part for part in parts if not (root / part).exists()]


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Turn what PIL raises on a bad file, at opening or at decoding, into a UserError with the file's name."""
    try:
        yield
    except FileNotFoundError:
        raise UserError(f"{path} does not exist, but a split lists it\n  try: put it there, or drop its line") from None
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise UserError(f"{path} can't be read as a picture: {error}\n  try: replace it, or drop its line") from None
