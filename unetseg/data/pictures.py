"""The one reader of pictures: files, arrays and PIL images become upright RGB of 8 bits, read by rows.

A view of another number of channels gets them as stored (channels.py).
Grey becomes RGB. More than 8 bits are mapped to 0..255 by a stated range; without one, 16 bits are mapped by their
whole range (65535 is white), also where a camera filled 12 of them. Transparency is laid on white. EXIF orientation is
applied. CMYK is converted as PIL does it. The first picture of an animation is taken. Pictures without one clear
meaning are refused by name: a TIFF of several pages, a band that is neither colour nor transparency, 32-bit integers
and floating-point numbers without a range. TIFFs are read by windows (tiff.py) where their layout allows it, all other
files as a whole.

Legend: H x W pixels.
"""

from __future__ import annotations

import io
import os
import warnings
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any, Protocol

import cv2
import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from unetseg.data.channels import FORMATS, ORIENTATION, as_channels, channels_size, from_pil, read_channels, turned
from unetseg.data.tiff import LAYOUTS, TIFF_MARKS, TiffPicture, UnknownLayout, check_pages, check_samples
from unetseg.data.view import RGB, Range, View
from unetseg.errors import UserError, first_line

IMAGE_SUFFIXES = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".png", ".apng", ".bmp", ".gif", ".tif", ".tiff", ".webp"),
    *(".avif", ".avifs", ".jp2", ".j2k", ".jpc", ".jpf", ".jpx", ".j2c", ".ppm", ".pgm", ".pbm", ".pnm"),
)
"""The endings, in small letters, by which a file in a folder counts as a picture."""
OWN_RANGE = ("PPM", "JPEG2000", "AVIF")
"""The formats that PIL scales by a depth that the file states: a range would be applied to other values."""
MOST = 2 * (Image.MAX_IMAGE_PIXELS or 0)
"""The most pixels of a picture that is read as a whole: PIL's own bound against forged sizes."""
CODECS = "pip install imagecodecs, which reads more kinds of TIFF"
BLOCK = 2**22
"""Pixels that are converted at a time."""
END_OF_JPEG = b"\xff\xd9"


class Unreadable(UserError):
    """A file does not exist, or its bytes are no picture."""


class Picture(Protocol):
    """A picture that is read by rows."""

    height: int
    width: int

    def rows(self, start: int, stop: int) -> np.ndarray:
        """Return the rows from start to before stop, hxWx3 uint8 RGB, or hxWxC float32 of other channels.

        Raises:
            UserError: they can't be read.
        """


class ArrayPicture:
    """A picture in memory, HxWx3 uint8 RGB, or HxWxC float32.

    Examples:
        >>> picture = ArrayPicture(np.zeros((4, 6, 3), np.uint8))
        >>> picture.height, picture.width, picture.rows(1, 3).shape
        (4, 6, (2, 6, 3))
    """

    def __init__(self, array: np.ndarray):
        self.array = array
        self.height, self.width = array.shape[:2]

    def rows(self, start: int, stop: int) -> np.ndarray:
        return self.array[start:stop]


WHOLE_RANGE = View()


def read_image(path: Path, view: View = WHOLE_RANGE) -> np.ndarray:
    """Return a picture as HxWx3 uint8 RGB, or HxWxC float32, in an array of its own, see `open_picture`."""
    with open_picture(path, view) as picture:
        check_size(path, picture.height, picture.width)
        return np.require(picture.rows(0, picture.height), requirements=["C", "W", "O"])


def is_stretched(image: Image.Image) -> bool:
    """Return whether PIL will stretch the values of a grey image, not loaded yet, to the range of 8 or 16 bits."""
    stored, *further = _layout(image)
    if image.format == "PPM":
        return further[:1] not in ([], [255], [65535])
    return image.mode == "L" and stored.startswith(("L;2", "L;4"))


def _layout(image: Image.Image) -> tuple[Any, ...]:
    """Return PIL's name for how the values lie in the file of a picture, such as L;4, and more of it for some formats.

    The name is empty where the picture is loaded already, or its format has none.
    """
    tiles = getattr(image, "tile", None)
    layout = tiles[0][3] if tiles else ""
    stored, *further = layout if isinstance(layout, tuple) else (layout,)
    return str(stored), *further  # a GIF's is its number of bits


def image_size(path: Path, view: View = WHOLE_RANGE) -> tuple[int, int]:
    """Return H and W of a picture as it will be read, from the header of its file.

    Raises:
        UserError: the header shows that the picture can't be read.
    """
    value_range = view.value_range
    with decoding_errors(path):
        check_file(path)
        if view.channels != RGB:
            return channels_size(path, view.channels)
        if path.suffix.lower() == ".npy":
            stored = np.load(path, mmap_mode="r", allow_pickle=False)
            check_type(stored.dtype, value_range)
            return stored.shape[0], stored.shape[1]
        if is_tiff(path):
            with suppress(UnknownLayout), closing(TiffPicture(path)) as stored:
                check_type(stored.dtype, value_range)
                return stored.height, stored.width
        with Image.open(path, formats=FORMATS) as picture:
            _check_kind(picture, value_range)
            return upright_size(picture)


def upright_size(picture: Image.Image) -> tuple[int, int]:
    width, height = picture.size
    turned = picture.format != "TIFF" and picture.getexif().get(ORIENTATION, 1) in (5, 6, 7, 8)
    return (width, height) if turned else (height, width)  # PIL has turned the size of a TIFF already


def check_size(path: Path, height: int, width: int) -> None:
    """Raise an Unreadable if a picture is too large to be read as a whole."""
    if height * width > MOST:
        raise Unreadable(
            f"{path} has {height * width:,} pixels",
            accepted=f"up to {MOST:,} for what is squashed to a square",
            advice="smaller pieces of it",
        )


@contextmanager
def open_picture(image: Any, view: View = WHOLE_RANGE) -> Iterator[Picture]:
    """Open a picture for reading, and close its file in the end.

    Args:
        image: a path, a PIL image, or an array of uint8 or uint16: HxW and HxWx1 grey, HxWx2 with alpha, HxWx3 RGB,
            HxWx4 RGBA; with a range also of other integers and of floating-point numbers.
        view: its `value_range` are the values of more than 8 bits that become black and white; 8 bits stay as they are.
            If its `channels` aren't 3: an array is HxWxC or CxHxW of any numbers, with one channel also HxW.

    Raises:
        UserError: the file does not exist or can't be read, or `image` is none of these kinds.
    """
    value_range = view.value_range
    if view.channels != RGB and isinstance(image, np.ndarray):
        yield ArrayPicture(as_channels(image, view.channels))
    elif view.channels != RGB and isinstance(image, Image.Image):
        with decoding_errors("the picture"):
            array = as_channels(from_pil(image), view.channels, planar=False)
        yield ArrayPicture(array)
    elif isinstance(image, np.ndarray):
        yield ArrayPicture(rgb(image, value_range))
    elif isinstance(image, Image.Image):
        with decoding_errors("the picture"):
            array = rgb_from_pil(image, value_range)
        yield ArrayPicture(array)
    elif isinstance(image, str | Path):
        path = Path(os.path.expanduser(image))
        if not path.is_file():
            raise Unreadable(f"{path} {'is a folder' if path.is_dir() else 'does not exist'}", accepted="a picture")
        picture: Picture
        with decoding_errors(path):
            if view.channels != RGB:
                picture = ArrayPicture(read_channels(path, view.channels))
            else:
                picture = _open_file(path, value_range)
        try:
            yield picture
        finally:
            if isinstance(picture, _RgbTiff):
                picture.close()
    else:
        raise UserError(
            f"a picture can't be {type(image).__name__}", accepted="a path, a PIL image, an array, or a list of these"
        )


class _RgbTiff(TiffPicture):
    """A TIFF as RGB, whose errors name the file."""

    def __init__(self, path: Path, value_range: Range):
        super().__init__(path)
        self.value_range = value_range

    def rows(self, start: int, stop: int) -> np.ndarray:
        with decoding_errors(self.path):
            return rgb(self.raw(start, stop), self.value_range)


def check_file(path: Path) -> None:
    """Raise an Unreadable where a path leads to a pipe or a device, which may never end, or to a folder."""
    if path.exists() and not path.is_file():
        raise Unreadable(f"{path} is no file", accepted="a picture")


def is_tiff(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(4) in TIFF_MARKS


def _open_file(path: Path, value_range: Range) -> Picture:
    layout = ""
    if path.suffix.lower() == ".npy":
        return ArrayPicture(rgb(np.load(path, allow_pickle=False), value_range))
    if is_tiff(path):
        try:
            picture = _RgbTiff(path, value_range)
            try:
                check_type(picture.dtype, value_range)
            except UserError:
                picture.close()
                raise
            return picture
        except UnknownLayout as error:
            layout = f" ({error}; by windows: {LAYOUTS})"
    try:
        content = path.read_bytes()
        with Image.open(io.BytesIO(content), formats=FORMATS) as image:
            if image.format == "JPEG":
                return ArrayPicture(_jpeg(image, content))
            if image.format == "PNG" and content[24] == 16 and not image.mode.startswith("I"):
                _check_kind(image, value_range)
                return ArrayPicture(_deep_png(image, content, value_range))
            return ArrayPicture(rgb_from_pil(image, value_range))
    except Image.DecompressionBombError:
        raise UserError(
            f"{path} has more than {MOST:,} pixels{layout}",
            accepted="at that size a TIFF in tiles or strips, which is read by windows",
        ) from None


def _deep_png(image: Image.Image, content: bytes, value_range: Range) -> np.ndarray:
    """Return a PNG with several channels of 16 bits as `rgb_from_pil` does; PIL would keep the upper 8 bits only."""
    if image.width * image.height > MOST // 2:  # twice as many need more than 4 GB on the way
        raise ValueError(f"it has more than {MOST // 2:,} pixels of 16 bits")
    image.load()  # raises where the file is cut short, which OpenCV would fill up
    decoded = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_UNCHANGED)
    if decoded is None or decoded.dtype != np.uint16 or decoded.ndim != 3:
        raise ValueError(f"its 16 bits of mode {image.mode} can't be decoded")
    order = {"RGB": [2, 1, 0], "RGBA": [2, 1, 0, 3], "LA": [0, -1]}[image.mode]
    return turned(rgb(decoded[..., order], value_range), image.getexif().get(ORIENTATION, 1))


def _jpeg(image: Image.Image, content: bytes) -> np.ndarray:
    """Return a JPEG as `rgb_from_pil` does.

    OpenCV decodes whole files of one or three channels: to the same pixels as PIL, but faster. PIL decodes the rest: it
    refuses a file that is cut short, which OpenCV before version 5 fills up with grey.
    """
    if image.mode in ("L", "RGB") and content.endswith(END_OF_JPEG):
        flags = cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION
        decoded = cv2.imdecode(np.frombuffer(content, np.uint8), flags)
        if decoded is not None:
            return turned(cv2.cvtColor(decoded, cv2.COLOR_BGR2RGB), image.getexif().get(ORIENTATION, 1))
    return rgb_from_pil(image)


def check_tiff(image: Image.Image) -> None:
    """Raise a ValueError if PIL would ignore a part of a TIFF: further pages, or bands of an unknown meaning."""
    tags = image.tag_v2  # type: ignore[attr-defined]
    check_samples(tags.get(262, 1), tags.get(277, 1), tags.get(338, ()))
    if tags.get(284) == 2 and tags.get(259, 1) == 1 and max(tags.get(258, (1,))) > 8:
        raise ValueError("its 16 bits lie in planes, uncompressed, which PIL mixes up")
    if getattr(image, "n_frames", 1) > 1:
        check_pages(_pages(image))
        image.seek(0)


def _pages(image: Image.Image) -> Iterator[tuple[int, int, int]]:
    """Yield width, height and NewSubfileType of each page of a TIFF."""
    for page in range(image.n_frames):  # type: ignore[attr-defined]
        image.seek(page)
        yield *image.size, image.tag_v2.get(254, 0)  # type: ignore[attr-defined]


def _check_kind(image: Image.Image, value_range: Range) -> None:
    """Raise an error if the values of a PIL image have no one clear meaning."""
    kind, mode = image.format or "", image.mode
    if kind == "TIFF":
        check_tiff(image)
        tags = image.tag_v2  # type: ignore[attr-defined]
        if tags.get(262) == 0 and mode not in ("1", "L"):
            raise ValueError("its 0 is white, in more than 8 bits")
        depth = max(tags.get(258, (1,)))
        if 8 < depth < 16 and value_range is None:
            raise UserError(f"it has {depth} bits, without a known range", advice=f"data.range=[0,{2**depth - 1}]")
        if value_range is not None and 16 in tags.get(258, ()) and not mode.startswith("I"):
            raise ValueError("8 of its 16 bits would be left before the range is applied: pip install imagecodecs")
    if value_range is not None and kind in OWN_RANGE:
        raise ValueError(f"{kind} with a range: it is for PNG, TIFF and arrays")
    if mode == "F" or (mode == "I" and kind != "PPM"):
        check_type(np.dtype(np.float32 if mode == "F" else np.int32), value_range)
    deep = mode.startswith(("I", "F")) or (kind == "PNG" and ";16" in _layout(image)[0])
    if deep and "transparency" in image.info:
        raise ValueError("it has 16 bits and a transparent colour")


def rgb_from_pil(image: Image.Image, value_range: Range = None) -> np.ndarray:
    """Return a PIL image of any mode as HxWx3 uint8 RGB, upright by its EXIF data."""
    _check_kind(image, value_range)
    kind = image.format
    stretched = kind == "PNG" and is_stretched(image) and "transparency" in image.info
    most = 2 ** int(_layout(image)[0][-1]) - 1 if stretched else 255
    image = ImageOps.exif_transpose(image)
    if stretched:  # PIL stretches the greys, but not the one that is transparent
        image.info["transparency"] *= 255 // most
    if image.mode.startswith(("I", "F")):
        array = np.asarray(image)
        sixteen = image.mode.startswith("I;16") or kind == "PPM"  # PIL has brought a PGM to 0..65535
        return rgb(array.astype(np.uint16) if sixteen else array, value_range)
    if image.has_transparency_data:
        return rgb(np.asarray(image.convert("RGBA")))
    return np.array(image.convert("RGB"))


def check_type(dtype: np.dtype, value_range: Range) -> None:
    """Raise a UserError if the values of a picture need a range and there is none."""
    if value_range is None and dtype not in (np.uint8, np.uint16):
        raise UserError(
            f"the values of a picture are {dtype} without a known range",
            accepted="8 or 16 bits; others with a range",
            advice=(
                "data.range=[low,high] in training, which the checkpoint keeps",
                "data.channels=1 in training, which takes the values as they are stored",
                "(255 * array).astype('uint8') of an array whose values are in 0..1",
            ),
        )


def rgb(array: np.ndarray, value_range: Range = None) -> np.ndarray:
    """Return HxW, HxWx1 (grey), HxWx2 (grey, alpha), HxWx3 or HxWx4 (RGBA), uint8 or uint16, as HxWx3 uint8 RGB.

    Raises:
        UserError: another shape or type (without a range), no pixels, or values that are no numbers.
    """
    channels = array.shape[2] if array.ndim == 3 else 1
    if array.ndim not in (2, 3) or not 1 <= channels <= 4 or 0 in array.shape or array.dtype.kind not in "uif":
        raise UserError(
            f"an array of shape {array.shape} and type {array.dtype} is no picture",
            accepted="HxW, HxWx3 or HxWx4, uint8 or uint16",
        )
    array = array.astype(array.dtype.newbyteorder("="), copy=False)
    check_type(array.dtype, value_range)
    if channels == 3 and array.dtype == np.uint8:
        return array
    if channels in (2, 4) and array.dtype not in (np.uint8, np.uint16):
        raise UserError(f"{channels} channels of {array.dtype}: transparency", accepted="uint8 or uint16, or no alpha")
    height, width = array.shape[:2]
    converted = np.empty((height, width, 3), np.uint8)
    step = max(1, BLOCK // width)
    for start in range(0, height, step):
        block = array[start : start + step].reshape(-1, width, channels)
        if channels in (2, 4):
            alpha = eight_bits(block[..., -1:], None).astype(np.uint16)
            colours = eight_bits(block[..., :-1], value_range)
            converted[start : start + step] = (colours * alpha + 255 * (255 - alpha) + 127) // 255
        else:
            converted[start : start + step] = eight_bits(block, value_range)
    return converted


def eight_bits(array: np.ndarray, value_range: Range) -> np.ndarray:
    """Return values of any type as uint8; values beyond the range become black or white."""
    if array.dtype == np.uint8:
        return array
    if value_range is None:
        return ((array.astype(np.uint32) * 255 + 32767) // 65535).astype(np.uint8)
    low, high = value_range
    share = (array.astype(np.float64) - low) / (high - low)
    if not np.isfinite(share).all():
        raise UserError("a picture has values that are no numbers (nan or infinite)", accepted="numbers")
    return np.rint(255 * share.clip(0, 1)).astype(np.uint8)


@contextmanager
def decoding_errors(name: str | Path) -> Iterator[None]:
    """Turn any exception of a decoder into a UserError that names the picture, and silence its warnings."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except Unreadable:
        raise
    except UserError as error:
        if str(name) in str(error):
            raise
        raise UserError(f"{name}: {error}") from None
    except FileNotFoundError:
        raise Unreadable(f"{name} does not exist", advice="put it there, or drop its line from the lists") from None
    except Exception as error:  # damaged bytes make decoders fail in every way there is
        reason = "its format is unknown" if isinstance(error, UnidentifiedImageError) else first_line(error)
        if "pickle" in reason:  # NumPy's advice would be to run what is in the file
            reason = "it is no array of numbers"
        advice = CODECS if "imagecodecs" in reason else "replace it, or leave it out"
        raise Unreadable(f"{name} can't be read as a picture: {reason}", advice=advice) from None
