"""Pictures as users have them, arrays, files, PIL's objects, as upright RGB of 8 bits that is read by rows.

What is done to them: grey becomes RGB; 16 bits are scaled by their whole range (65535 is white), also where a camera
filled 12 of them; transparency is laid on white; EXIF orientation is applied; of an animation or a file with several
pages the first is taken. TIFFs are read by windows (tiff.py) where their layout allows it, the rest as a whole.

Legend: H x W pixels.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from PIL import Image, ImageOps

from unetseg.config import UserError
from unetseg.tiff import LAYOUTS, TIFF_MARKS, TiffPicture, UnknownLayout

FORMATS = ("JPEG", "PNG", "BMP", "GIF", "TIFF", "WEBP", "PPM", "JPEG2000", "AVIF")
"""What PIL may open: some of its other formats run programs (EPS) or ask the network."""


class Picture(Protocol):
    """A picture that is read by rows."""

    height: int
    width: int

    def rows(self, start: int, stop: int) -> np.ndarray:
        """Return the rows from start to before stop, hxWx3 uint8 RGB; raise a UserError if they can't be read."""
        ...


class ArrayPicture:
    """A picture in memory, HxWx3 uint8 RGB."""

    def __init__(self, array: np.ndarray):
        self.array = array
        self.height, self.width = array.shape[:2]

    def rows(self, start: int, stop: int) -> np.ndarray:
        """Return the rows from start to before stop, hxWx3 uint8 RGB."""
        return self.array[start:stop]


@contextmanager
def opened(image: Any) -> Iterator[Picture]:
    """Open a picture for reading; what is open is closed in the end.

    Args:
        image: a path, a PIL image, or an array of uint8 or uint16: HxW and HxWx1 grey, HxWx2 with alpha, HxWx3 RGB,
            HxWx4 RGBA.

    Raises:
        UserError: there is no such file, it can't be read, or it is no picture of these kinds.
    """
    if isinstance(image, np.ndarray):
        yield ArrayPicture(rgb(image))
    elif isinstance(image, Image.Image):
        with naming("the picture"):
            array = upright(image)
        yield ArrayPicture(array)
    elif isinstance(image, str | Path):
        path = Path(image)
        if not path.is_file():
            raise UserError(f"{path} {'is a folder' if path.is_dir() else 'does not exist'}\n  accepted: a picture")
        with naming(path):
            picture = _from_file(path)
        try:
            yield picture
        finally:
            if isinstance(picture, _NamedTiff):
                picture.close()
    else:
        raise UserError(
            f"a picture can't be {type(image).__name__}\n  accepted: a path, a PIL image, an array, or a list of these"
        )


class _NamedTiff(TiffPicture):
    """A TIFF as RGB, whose errors name the file."""

    def rows(self, start: int, stop: int) -> np.ndarray:
        """Return the rows from start to before stop, hxWx3 uint8 RGB."""
        with naming(self.path):
            return rgb(self.raw(start, stop))


def _from_file(path: Path) -> Picture:
    with path.open("rb") as file:
        mark = file.read(4)
    layout = ""
    if mark in TIFF_MARKS:
        try:
            return _NamedTiff(path)
        except UnknownLayout as error:
            layout = f" ({error}; by windows: {LAYOUTS})"
    try:
        with Image.open(path, formats=FORMATS) as image:
            return ArrayPicture(upright(image))
    except Image.DecompressionBombError:
        raise UserError(
            f"{path} has more than {2 * (Image.MAX_IMAGE_PIXELS or 0):,} pixels{layout}\n"
            "  accepted: at that size a TIFF in tiles or strips, which is read by windows"
        ) from None


def upright(image: Image.Image) -> np.ndarray:
    """Return a PIL image of any mode as HxWx3 uint8 RGB, turned as its EXIF data say."""
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I"):  # 16 bits, in the variants that PIL has of them
        return rgb(np.clip(np.asarray(image), 0, 65535).astype(np.uint16))
    if image.mode == "F":
        raise ValueError("its values are floating-point numbers without a known range")
    if image.has_transparency_data:
        return rgb(np.asarray(image.convert("RGBA")))
    return np.array(image.convert("RGB"))


def rgb(array: np.ndarray) -> np.ndarray:
    """Return HxW, HxWx1 (grey), HxWx2 (grey, alpha), HxWx3 or HxWx4 (RGBA), uint8 or uint16, as HxWx3 uint8 RGB.

    Raises:
        UserError: another shape or type, or no pixels.
    """
    channels = array.shape[2] if array.ndim == 3 else 1
    if (
        array.ndim not in (2, 3)
        or not 1 <= channels <= 4
        or 0 in array.shape
        or array.dtype not in (np.uint8, np.uint16)
    ):
        raise UserError(
            f"an array of shape {array.shape} and type {array.dtype} is no picture\n"
            "  accepted: HxW, HxWx3 or HxWx4, uint8 or uint16\n"
            "  try: (255 * array).astype('uint8') if its values are in 0..1"
        )
    if array.dtype == np.uint16:
        array = ((array.astype(np.uint32) * 255 + 32767) // 65535).astype(np.uint8)
    array = array.reshape(*array.shape[:2], channels)
    if channels in (2, 4):
        alpha = array[..., -1:].astype(np.uint16)
        array = ((array[..., :-1] * alpha + 255 * (255 - alpha) + 127) // 255).astype(np.uint8)
    return array if array.shape[2] == 3 else np.repeat(array, 3, axis=2)


@contextmanager
def naming(what: str | Path) -> Iterator[None]:
    """Turn whatever a decoder raises into a UserError that names the picture, and keep its warnings back."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except UserError:
        raise
    except Exception as error:  # damaged bytes make decoders fail in every way there is
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise UserError(f"{what} can't be read as a picture: {reason}\n  try: replace it, or leave it out") from None
