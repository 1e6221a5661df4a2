"""The one reader of pictures and masks: files, arrays and PIL's objects become upright RGB of 8 bits, read by rows.

What is done to a picture: grey becomes RGB; 16 bits are scaled by their whole range (65535 is white), also where a
camera filled 12 of them; transparency is laid on white; EXIF orientation is applied; of an animation or a file with
several pages the first is taken. TIFFs are read by windows (tiff.py) where their layout allows it, the rest as a whole.

Legend: H x W pixels.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import cv2
import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from unetseg.data.tiff import LAYOUTS, TIFF_MARKS, TiffPicture, UnknownLayout
from unetseg.errors import UserError, first_line

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp")
FORMATS = ("JPEG", "PNG", "BMP", "GIF", "TIFF", "WEBP", "PPM", "JPEG2000", "AVIF")
"""What PIL may open: some of its other formats run programs (EPS) or ask the network."""
INVALID = 254
"""Marks mask values without a meaning in a value table; classes go from 0 to 253, 255 is IGNORE."""
END_OF_JPEG = b"\xff\xd9"
ORIENTATION = 0x0112
"""EXIF's tag for how a picture is turned."""


class Unreadable(UserError):
    """A file is absent, or its bytes are no picture."""


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


def read_image(path: Path) -> np.ndarray:
    """Return a picture as HxWx3 uint8 RGB, see `opened`; it owns its memory."""
    with opened(path) as picture:
        return np.require(picture.rows(0, picture.height), requirements=["C", "W", "O"])


def read_mask(path: Path, values: np.ndarray) -> np.ndarray:
    """Return a mask as HxW uint8 classes (IGNORE included).

    Args:
        path: a picture of one channel of 8 bits or less, grey or with a palette.
        values: 256 uint8: the class of each value, IGNORE, or INVALID.

    Raises:
        UserError: a picture of another kind, or a value that is INVALID.
        Unreadable: the file is absent or its bytes are no picture.
    """
    with naming(path), Image.open(path, formats=FORMATS) as picture:
        if picture.mode not in ("L", "P", "1"):
            raise UserError(
                f"{path} is a mask of mode {picture.mode}",
                accepted="one channel of 8 bits or less (grey or palette) with the class as the value",
            )
        raw = np.asarray(picture).astype(np.uint8)  # a palette picture gives its indices, a bilevel one 0 and 1
    mask = values[raw]
    if (mask == INVALID).any():
        unknown = np.unique(raw[mask == INVALID])[:5].tolist()
        raise UserError(
            f"{path} has the value {', '.join(map(str, unknown))}",
            accepted=", ".join(map(str, np.flatnonzero(values != INVALID).tolist())),
            advice="data.classes with a name for each value, or data.ignore_index",
        )
    return mask


def size_of(path: Path) -> tuple[int, int]:
    """Return H and W of a picture or a mask as it will be read, from the head of its file."""
    with naming(path), Image.open(path, formats=FORMATS) as picture:
        width, height = picture.size
        return (width, height) if picture.getexif().get(ORIENTATION, 1) > 4 else (height, width)


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
            raise Unreadable(f"{path} {'is a folder' if path.is_dir() else 'does not exist'}", accepted="a picture")
        with naming(path):
            picture = _from_file(path)
        try:
            yield picture
        finally:
            if isinstance(picture, _NamedTiff):
                picture.close()
    else:
        raise UserError(
            f"a picture can't be {type(image).__name__}", accepted="a path, a PIL image, an array, or a list of these"
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
        content = path.read_bytes()
        with Image.open(io.BytesIO(content), formats=FORMATS) as image:
            return ArrayPicture(_jpeg(image, content) if image.format == "JPEG" else upright(image))
    except Image.DecompressionBombError:
        raise UserError(
            f"{path} has more than {2 * (Image.MAX_IMAGE_PIXELS or 0):,} pixels{layout}",
            accepted="at that size a TIFF in tiles or strips, which is read by windows",
        ) from None


def _jpeg(image: Image.Image, content: bytes) -> np.ndarray:
    """Return a JPEG as `upright` does. OpenCV decodes whole ones of one or three channels to PIL's pixels, but faster.

    PIL decodes the rest: it refuses what is cut short, where OpenCV before 5 fills up with grey.
    """
    if image.mode in ("L", "RGB") and content.endswith(END_OF_JPEG):
        flags = cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION
        decoded = cv2.imdecode(np.frombuffer(content, np.uint8), flags)
        if decoded is not None:
            return _turned(cv2.cvtColor(decoded, cv2.COLOR_BGR2RGB), image.getexif().get(ORIENTATION, 1))
    return upright(image)


def _turned(array: np.ndarray, orientation: int) -> np.ndarray:
    """Return HxWx3 as EXIF's orientation, 1 ... 8, says; other values turn nothing, as with PIL."""
    if orientation in (5, 6, 7, 8):
        array = array.transpose(1, 0, 2)  # 5; the others turn or mirror this
    if orientation in (3, 4, 7, 8):
        array = array[::-1]
    if orientation in (2, 3, 6, 7):
        array = array[:, ::-1]
    return array


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
            f"an array of shape {array.shape} and type {array.dtype} is no picture",
            accepted="HxW, HxWx3 or HxWx4, uint8 or uint16",
            advice="(255 * array).astype('uint8') if its values are in 0..1",
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
    except FileNotFoundError:
        raise Unreadable(f"{what} does not exist", advice="put it there, or drop its line from the lists") from None
    except Exception as error:  # damaged bytes make decoders fail in every way there is
        reason = "its format is unknown" if isinstance(error, UnidentifiedImageError) else first_line(error)
        raise Unreadable(f"{what} can't be read as a picture: {reason}", advice="replace it, or leave it out") from None
