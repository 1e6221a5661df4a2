"""Pictures of any number of channels, as their files store them: grey, infrared beside RGB, thirteen bands, stacks.

Where `data.channels` isn't 3, nothing is converted to RGB: the values go to the model in float32, and the model
normalises each channel by its mean and standard deviation.

Legend: H x W pixels, C channels.
"""

from __future__ import annotations

import io
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import tifffile
from PIL import Image, ImageOps

from unetseg.data.tiff import TIFF_MARKS
from unetseg.data.view import RGB, View
from unetseg.errors import UserError
from unetseg.names import counted

FORMATS = ("JPEG", "PNG", "BMP", "GIF", "TIFF", "WEBP", "PPM", "JPEG2000", "AVIF")
"""The formats that PIL may open: some of the others run programs (EPS) or ask the network."""
ORIENTATION = 0x0112
"""EXIF's tag of a picture's orientation."""
SPREAD = 2
"""Standard deviations on both sides of the mean between black and white, where channels are shown."""


def read_channels(path: Path, channels: int) -> np.ndarray:
    """Return a TIFF (bands, planes or pages), an .npy, or another picture as HxWxC float32, as its values are stored.

    It is turned as EXIF or the TIFF says. One bit a pixel is 0 or 255.

    Raises:
        UserError: it has another number of channels, or values that are no numbers.
        Exception: of any kind, by a decoder, on damaged bytes.
    """
    return as_channels(stored_values(path), channels, planar=path.suffix.lower() == ".npy")


def channels_size(path: Path, channels: int) -> tuple[int, int]:
    """Return H and W of a picture that `read_channels` will read, from its header where its format has one.

    Raises:
        UserError: it has another number of channels.
    """
    if path.suffix.lower() == ".npy":
        shape: Sequence[int] = np.load(path, mmap_mode="r", allow_pickle=False).shape
    elif _is_tiff(path):
        with tifffile.TiffFile(path) as file:
            series = _series(file)
            shape = _ordered_shape(series)
            if _orientation(series) in (5, 6, 7, 8):
                shape = (shape[1], shape[0], shape[2])
    else:
        with Image.open(path, formats=FORMATS) as image:
            width, height = image.size
            if image.getexif().get(ORIENTATION, 1) in (5, 6, 7, 8):
                width, height = height, width
            shape = (height, width, _band_count(image))
    return _order(shape, channels, planar=path.suffix.lower() == ".npy")[1]


def as_channels(array: np.ndarray, channels: int, *, planar: bool = True) -> np.ndarray:
    """Return HxW (one channel), HxWxC or, where `planar` allows it, CxHxW of any numbers as HxWxC float32.

    Raises:
        UserError: another number of channels, another type, or values that are no numbers.
    """
    if array.dtype.kind not in "uifb" or 0 in array.shape:
        raise UserError(f"an array of {array.dtype} of shape {array.shape} is no picture", accepted="numbers")
    first, _ = _order(array.shape, channels, planar)
    if array.ndim == 2:
        array = array[..., None]
    elif first:
        array = np.moveaxis(array, 0, -1)
    values = np.ascontiguousarray(array, dtype=np.float32)
    if not np.isfinite(values).all():
        raise UserError(
            "a picture has values that are no numbers (nan or infinite)",
            accepted="numbers; a fixed one, such as 0, where a sensor has none",
        )
    return values


def statistics(pictures: Iterable[np.ndarray]) -> tuple[list[float], list[float]]:
    """Return mean and standard deviation of each channel over all pixels of HxWxC pictures, in float64.

    A channel that is the same everywhere has the standard deviation 1, by which it becomes 0.
    """
    count, mean, squares = 0, np.zeros(1), np.zeros(1)
    for picture in pictures:
        values = picture.reshape(-1, picture.shape[-1]).astype(np.float64)
        own = values.mean(0)
        more, total = len(values), count + len(values)
        # Chan, Golub and LeVeque 1979: sums of squares of large values would lose the difference
        squares = squares + ((values - own) ** 2).sum(0) + (own - mean) ** 2 * (count * more / total)
        mean, count = mean + (own - mean) * (more / total), total
    deviation = np.sqrt(squares / max(count, 1))
    return [*map(float, mean)], [*map(float, np.where(deviation > 0, deviation, 1.0))]


def displayed(image: np.ndarray, view: View) -> np.ndarray:
    """Return an image, HxWxC, as HxWx3 uint8 for people: RGB as it is, of others the channels that the view shows.

    Black is two standard deviations below a channel's mean, white two above; where the view doesn't know them, those of
    the image.
    """
    if view.channels == RGB:
        return image
    bands = [*(view.shown or (range(3) if view.channels > 3 else [0]))]
    bands *= 3 if len(bands) == 1 else 1
    mean, std = (view.mean, view.std) if view.mean is not None and view.std is not None else statistics([image])
    low, width = np.array(mean)[bands] - SPREAD * np.array(std)[bands], 2 * SPREAD * np.array(std)[bands]
    return np.rint(255 * ((image[..., bands] - low) / width).clip(0, 1)).astype(np.uint8)


def stored_values(path: Path) -> np.ndarray:
    """Return HxW or HxWxC as a file stores it, upright; an .npy as it is."""
    if path.suffix.lower() == ".npy":
        return np.load(path, mmap_mode="r", allow_pickle=False)
    if _is_tiff(path):
        with tifffile.TiffFile(path) as file:
            series = _series(file)
            array = series.asarray()
            axes, orientation = series.axes, _orientation(series)
            if series.keyframe.bitspersample == 1:
                array = array.astype(np.uint8) * 255
        planes = np.moveaxis(array, [axes.index("Y"), axes.index("X")], [0, 1])
        return turned(planes.reshape(*planes.shape[:2], -1), orientation)
    content = path.read_bytes()
    with Image.open(io.BytesIO(content), formats=FORMATS) as image:
        if image.format == "PNG" and content[24] == 16 and not image.mode.startswith("I"):
            _band_count(image)
            decoded = cv2.imdecode(
                np.frombuffer(content, np.uint8), cv2.IMREAD_UNCHANGED | cv2.IMREAD_IGNORE_ORIENTATION
            )
            order = {"RGB": [2, 1, 0], "RGBA": [2, 1, 0, 3], "LA": [0, -1]}[image.mode]
            if decoded is None:
                raise ValueError(f"its 16 bits of mode {image.mode} can't be decoded")
            return turned(decoded[..., order], image.getexif().get(ORIENTATION, 1))  # PIL would keep 8 of 16 bits
        return from_pil(image)


def from_pil(image: Image.Image) -> np.ndarray:
    """Return a PIL image's bands, HxW or HxWxC as it stores them, upright; one bit a pixel is 0 or 255."""
    _band_count(image)
    upright = ImageOps.exif_transpose(image)
    return np.array(upright.convert("L") if upright.mode == "1" else upright)


def turned(array: np.ndarray, orientation: int) -> np.ndarray:
    """Return HxW or HxWxC upright by EXIF's orientation, 1 ... 8; other values change nothing, as with PIL."""
    if orientation in (5, 6, 7, 8):
        array = array.swapaxes(0, 1)
    if orientation in (3, 4, 7, 8):
        array = array[::-1]
    if orientation in (2, 3, 6, 7):
        array = array[:, ::-1]
    return array


def _series(file: tifffile.TiffFile) -> Any:
    """Return the only series of a TIFF, besides smaller copies of it.

    Raises:
        UserError: it has pages of several kinds, or a table of colours.
    """
    first, *others = file.series
    if any(not series.keyframe.is_reduced for series in others) or first.keyframe.is_reduced:
        raise UserError("it has pages of several sizes or kinds", accepted="a TIFF whose pages are all channels")
    if first.keyframe.photometric == tifffile.PHOTOMETRIC.PALETTE:
        raise UserError("its values are places in a table of colours", accepted="data.channels=3, which looks them up")
    _ordered_shape(first)
    return first


def _orientation(series: Any) -> int:
    tag = series.keyframe.tags.get("Orientation")
    return 1 if tag is None else int(tag.value)


def _plane(series: Any) -> tuple[int, int]:
    return series.shape[series.axes.index("Y")], series.shape[series.axes.index("X")]


def _ordered_shape(series: Any) -> tuple[int, int, int]:
    """Return H, W and the number of all planes of a TIFF's first series: its bands, pages or slices in their order."""
    if "Y" not in series.axes or "X" not in series.axes:
        raise UserError(f"its axes are {series.axes}", accepted="a TIFF of planes with rows and columns")
    height, width = _plane(series)
    planes = math.prod(series.shape) // max(1, height * width)
    file = series[0].parent.filehandle
    if math.prod(series.shape) * series.dtype.itemsize > 1100 * file.size:  # Deflate can't do better
        raise ValueError("it claims more pixels than its bytes can hold")
    return height, width, planes


def _band_count(image: Image.Image) -> int:
    if image.mode == "P":
        raise UserError("its values are places in a table of colours", accepted="data.channels=3, which looks them up")
    return len(image.getbands())


def _is_tiff(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(4) in TIFF_MARKS


def _order(shape: Sequence[int], channels: int, planar: bool) -> tuple[bool, tuple[int, int]]:
    """Return whether the channels come first in a shape, and H and W; a UserError if their number isn't `channels`."""
    if len(shape) == 2 and channels == 1:
        return False, (shape[0], shape[1])
    if planar and len(shape) == 3 and shape[0] == shape[2] == channels != shape[1]:
        raise UserError(f"its shape {tuple(shape)} may be HxWxC or CxHxW", accepted="arrays of one meaning")
    if len(shape) == 3 and shape[2] == channels:
        return False, (shape[0], shape[1])
    if planar and len(shape) == 3 and shape[0] == channels:
        return True, (shape[1], shape[2])
    count = 1 if len(shape) == 2 else shape[2] if len(shape) == 3 else 0
    found = f"the shape {tuple(shape)}" if planar or not count else counted(count, "channel")
    raise UserError(
        f"it has {found}, data.channels is {channels}",
        accepted="pictures that all have data.channels channels",
        advice=f"data.channels={count} in training" if count and not planar else "HxWxC or CxHxW",
    )
