"""What a data set is once its files have been found, and how one example of it is read."""

from __future__ import annotations

import io
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from PIL import Image, UnidentifiedImageError

from unetseg.config import UserError

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp")
INVALID = 254
"""Marks mask values without a meaning in a value table; classes go from 0 to 253, 255 is IGNORE."""
REDUCED = {
    8: cv2.IMREAD_REDUCED_COLOR_8,
    4: cv2.IMREAD_REDUCED_COLOR_4,
    2: cv2.IMREAD_REDUCED_COLOR_2,
    1: cv2.IMREAD_COLOR,
}
"""How OpenCV is asked for a JPEG with sides divided by 8, 4, 2 or 1."""
END_OF_JPEG = b"\xff\xd9"


class Unreadable(UserError):
    """A file is absent, or its bytes are no picture."""


@dataclass(frozen=True)
class Example:
    """One picture and its mask, as files."""

    name: str
    image: Path
    mask: Path
    group: str
    """What results are broken down by: the breed in Pets, empty where there is none."""


class Listing(Sequence[Example]):
    """Many examples as a few arrays of bytes; an Example is made when it is asked for.

    A loader's process shares the memory of the process that it was forked from until one of the two writes to it, and
    Python writes to an object whenever it is looked at: a list of N examples would be copied into every loader process.
    """

    def __init__(self, examples: Iterable[Example]):
        rows = [tuple(map(os.fsencode, (e.name, str(e.image), str(e.mask), e.group))) for e in examples]
        self.columns = [np.array([row[column] for row in rows], dtype=np.bytes_) for column in range(4)]

    def __len__(self) -> int:
        return len(self.columns[0])

    def __getitem__(self, index: int) -> Example:  # type: ignore[override]  # slices are not needed
        name, image, mask, group = (os.fsdecode(column[index]) for column in self.columns)
        return Example(name, Path(image), Path(mask), group)


@dataclass(frozen=True)
class Collection:
    """A data set: its classes, what its mask values mean, and the examples of each split."""

    classes: tuple[str, ...]
    values: np.ndarray
    """256 uint8: the class of each mask value, IGNORE, or INVALID."""
    splits: Mapping[str, Sequence[Example]]
    """train, val and test."""


def read_image(path: Path, side: int) -> np.ndarray:
    """Return a picture as HxWx3 uint8 RGB, whatever format its bytes are in.

    A JPEG whose sides are at least 2, 4 or 8 times `side` is decoded at a half, a quarter or an eighth of its size,
    where that divides its sides: otherwise what is decoded would not lie exactly where the mask does.

    OpenCV decodes whole JPEGs of one or three channels, to the pixels that PIL gives, but faster. PIL decodes the rest:
    it refuses what is cut short, where OpenCV before 5 fills up with grey.
    """
    with _naming(path), Image.open(io.BytesIO(content := path.read_bytes())) as picture:
        if picture.format == "JPEG" and picture.mode in ("L", "RGB") and content.endswith(END_OF_JPEG):
            factor = next(f for f in REDUCED if f == 1 or all(s >= f * side and s % f == 0 for s in picture.size))
            flags = REDUCED[factor] | cv2.IMREAD_IGNORE_ORIENTATION  # masks are not turned either
            decoded = cv2.imdecode(np.frombuffer(content, np.uint8), flags)
            if decoded is not None:
                return cv2.cvtColor(decoded, cv2.COLOR_BGR2RGB)
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


def check_headers(examples: Sequence[Example]) -> dict[int, Unreadable]:
    """Read the headers of all files, before training starts; return, by position, why some can't be read.

    Raises:
        UserError: a mask hasn't its picture's size.
    """

    def check(example: Example) -> Unreadable | None:
        sizes = []
        try:
            for path in (example.image, example.mask):
                with _naming(path), Image.open(path) as picture:
                    sizes.append(picture.size)
        except Unreadable as error:
            return error
        if sizes[0] != sizes[1]:
            raise UserError(
                f"{example.mask} is {sizes[1][0]}x{sizes[1][1]}, its picture {example.image} "
                f"{sizes[0][0]}x{sizes[0][1]}\n  accepted: a mask of the picture's size"
            )
        return None

    with ThreadPoolExecutor(8) as pool:
        return {position: error for position, error in enumerate(pool.map(check, examples)) if error}


def missing_layout(root: Path, parts: Sequence[str]) -> list[str]:
    """Return the parts of a layout (files or folders under root) that do not exist."""
    return [part for part in parts if not (root / part).exists()]


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Turn what a decoder raises on a bad file, at opening or at decoding, into an Unreadable with the file's name."""
    try:
        yield
    except FileNotFoundError:
        raise Unreadable(
            f"{path} does not exist, but a split lists it\n  try: put it there, or drop its line"
        ) from None
    except (OSError, SyntaxError, ValueError, cv2.error, Image.DecompressionBombError) as error:
        reason = "its format is unknown" if isinstance(error, UnidentifiedImageError) else error
        raise Unreadable(f"{path} can't be read as a picture: {reason}\n  try: replace it, or drop its line") from None
