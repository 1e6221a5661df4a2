"""The one reader of masks: files become the classes of their pixels.

A mask is read as it is stored, into values up to 255, and a table says the class of each. Values beyond 255, negative
ones and colours are stated one by one; the position in the statement is then the value. With a threshold the values
are 0 and 1.

Legend: H x W pixels.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, ImageColor, ImageOps, UnidentifiedImageError

from unetseg.data.pictures import (
    FORMATS,
    IMAGE_SUFFIXES,
    check_file,
    check_size,
    check_tiff,
    decoding_errors,
    is_stretched,
    is_tiff,
    upright_size,
)
from unetseg.data.tiff import TiffPicture
from unetseg.errors import UserError
from unetseg.names import IGNORE, IGNORED

INVALID = 254
"""Marks mask values without a meaning in a value table; classes go from 0 to 253, 255 is IGNORE."""
MANY = 6
"""A mask with so many values without a meaning looks anti-aliased, or like a JPEG."""
MASK_SUFFIXES = (*IMAGE_SUFFIXES, ".npy")
"""The endings, in small letters, by which a file counts as a mask."""


@dataclass(frozen=True)
class MaskValues:
    """What the values of a mask mean.

    Examples:
        >>> values = stated_values({"background": "#000000", "vessel": ["#ffffff", "#ff0000"], "ignore": "#808080"})
        >>> values.table[:4].tolist(), values.listed[3]
        ([0, 1, 1, 255], (128, 128, 128))
    """

    table: np.ndarray
    """256 uint8: the class of each value, IGNORE, or INVALID."""
    listed: tuple[tuple[int, ...], ...] = ()
    """Stored values, (v,), or colours, (r, g, b): the first of them is read as 0, the second as 1, ..."""
    threshold: float | None = None
    """Stored values above it are read as 1, the others as 0."""
    either: bool = False
    """1 and 255 both stand for the foreground, in a set whose masks use one of them only."""

    @property
    def reading(self) -> str:
        """Return what a mask's stored values become before the table is applied, as a text for fingerprints."""
        return f"{self.listed}{self.threshold}"


def stated_values(meanings: Mapping[str, Any]) -> MaskValues:
    """Return the values that `data.values` states: for each class, and for `ignore`, a value, a colour or several.

    Args:
        meanings: class name (the classes 0, 1, ... in this order) or IGNORED, to 0, 255, "#ff0000", or a list of these.
    """
    entries = [
        (_stored(entry), name)
        for name, entries in meanings.items()
        for entry in (entries if isinstance(entries, list) else [entries])
    ]
    names = [name for name in meanings if name != IGNORED]
    labels = [IGNORE if name == IGNORED else names.index(name) for _, name in entries]
    stored = [value for value, _ in entries]
    table = np.full(256, INVALID, np.uint8)
    if all(len(value) == 1 and 0 <= value[0] <= 255 for value in stored):
        table[[value[0] for value in stored]] = labels
        return MaskValues(table)
    table[: len(stored)] = labels
    return MaskValues(table, tuple(stored))


def _stored(entry: int | str) -> tuple[int, ...]:
    """Return a value as (v,) and a colour, "#rrggbb", as (r, g, b)."""
    return ImageColor.getrgb(entry)[:3] if isinstance(entry, str) and entry.startswith("#") else (int(entry),)


class RawMask(NamedTuple):
    """A mask as it is stored."""

    values: np.ndarray
    """HxW uint8."""
    bilevel: bool = False
    """One bit a pixel: 1 is white, which may mean 1 or 255."""
    palette: bytes = b""
    """Three bytes for each value; empty where the mask has no palette."""


def read_mask(path: Path, values: MaskValues) -> np.ndarray:
    """Return a mask as HxW uint8 classes (IGNORE included), upright.

    Raises:
        UserError: a picture of another kind, a value that is INVALID, or both 1 and 255 for one class.
        Unreadable: the file does not exist or its bytes are no picture.
    """
    raw, table = read_raw_mask(path, values).values, values.table
    mask = table[raw]
    if values.either or (mask == INVALID).any():
        present = np.bincount(raw.ravel(), minlength=256) > 0
        check_values(path, present, values)
    return mask


def check_values(path: Path, present: np.ndarray, values: MaskValues) -> None:
    """Raise a UserError if one of the values present, 256 booleans, has no meaning, see `MaskValues`."""
    table = values.table
    unknown = np.flatnonzero(present & (table == INVALID)).tolist()
    if unknown:
        accepted = np.flatnonzero(table != INVALID).tolist()
        shown = ", ".join(map(str, unknown[:5]))
        if len(unknown) > 5:
            shown += ", ..."
        if table[0] == INVALID and table[1] == 1:
            advice = ["trimaps of 1 pet, 2 background, 3 boundary; data=folder for masks of another kind"]
        elif len(unknown) >= MANY:
            advice = [
                "data.threshold=127, where its edges are anti-aliased or it was a JPEG",
                "data.threshold=0, where each value is an object of one class",
                "data.classes with a name for each value",
            ]
        else:
            stated = ",".join(f"NAME:{value}" for value in [*accepted[:1], *unknown])
            advice = [
                f"'data.values={{{stated}}}', with ignore as the NAME of what doesn't count (data=own: stated_values)",
                "data.classes with a name for each value, counted from 0, or data.ignore_index",
            ]
        raise UserError(
            f"{path} has the {'values' if len(unknown) > 1 else 'value'} {shown}",
            accepted=", ".join(map(str, accepted)),
            advice=advice,
        )
    if values.either and present[1] and present[255]:
        raise ambiguous_foreground(path, path)


def ambiguous_foreground(one: Path, other: Path) -> UserError:
    """Return the error for masks with both 1 and 255, of which only one can be the foreground."""
    where = f"{one} has the values 1 and 255" if one == other else f"{one} has the value 1, {other} the value 255"
    return UserError(
        f"{where}: which is the foreground?",
        accepted="0 and 1, or 0 and 255; a third value is to be ignored or a class of its own",
        advice="data.ignore_index=255, or data.ignore_index=1",
    )


def read_raw_mask(path: Path, values: MaskValues) -> RawMask:
    """Return a mask as it is stored, upright; see `MaskValues` for stated values and a threshold.

    Raises:
        UserError: the file is no picture of one channel with values up to 255, or not of the values that are stated.
        Unreadable: the file does not exist or its bytes are no picture.
    """
    with decoding_errors(path):
        check_file(path)
        if values.threshold is not None:
            return RawMask(_above(path, values.threshold))
        if values.listed:
            return _read_listed(path, values.listed)
        return _read_plain(path)


def _read_plain(path: Path) -> RawMask:
    accepted = "one channel (grey or palette) with the class, 0 to 255, as the value"
    if path.suffix.lower() == ".npy":
        raw = RawMask(_array(path))
    else:
        try:
            with _opened(path) as picture:
                if not _is_one_channel(picture):
                    raise _no_classes(path, picture, accepted)
                upright = ImageOps.exif_transpose(picture)
                palette = bytes(upright.getpalette("RGB") or ()) if picture.mode == "P" else b""
                raw = RawMask(np.asarray(upright), picture.mode == "1", palette)
        except UnidentifiedImageError:
            raw = RawMask(_tiff_mask(path))
    array = raw.values
    if array.ndim != 2 or array.dtype.kind == "f" or array.min() < 0 or array.max() > 255:
        kind = f"{array.dtype} of shape {array.shape} and " if array.ndim != 2 or array.dtype.kind == "f" else ""
        raise UserError(
            f"{path} has {kind}values from {array.min()} to {array.max()}",
            accepted=accepted,
            advice=(
                "data.values={background:0,NAME:1000,ignore:-1}, which states values of any size",
                "data.threshold=0, where each value is an object of one class",
            ),
        )
    return raw._replace(values=array.astype(np.uint8))


def _is_one_channel(picture: Image.Image) -> bool:
    return picture.mode in ("L", "P", "1", "I") or picture.mode.startswith("I;16")


@contextmanager
def _opened(path: Path) -> Iterator[Image.Image]:
    """Open a mask as a PIL image whose values are those of the file.

    Raises:
        UserError: PIL would stretch or turn its values, or some of its pixels are transparent.
        UnidentifiedImageError: PIL can't read the file, or would read signed values as others.
    """
    # from memory: PIL would map a TIFF's file by its turned size and mix up the pixels
    with Image.open(io.BytesIO(path.read_bytes()), formats=FORMATS) as picture:
        tags: Any = getattr(picture, "tag_v2", {})
        if picture.format == "TIFF":
            check_tiff(picture)
            if tags.get(262) == 0 and picture.mode != "1":
                raise UserError(f"{path} is a TIFF whose 0 is white", accepted="a mask whose 0 is black")
            if picture.mode == "L" and 2 in tags.get(339, ()):
                raise UnidentifiedImageError  # signed, which PIL takes for 0 ... 255
        if is_stretched(picture):
            raise UserError(
                f"{path} has neither 1 nor 8 nor 16 bits a pixel: are its values classes or greys?",
                accepted="masks of 1, 8 or 16 bits a pixel",
                advice="the same values in 8 bits",
            )
        if "A" in picture.getbands() and picture.getchannel("A").getextrema() != (255, 255):
            raise UserError(
                f"{path} has transparent pixels: what class are they?",
                accepted="masks without transparency",
                advice="a value or colour of its own for what is transparent",
            )
        yield picture


def _no_classes(path: Path, picture: Image.Image, accepted: str) -> UserError:
    """Return the error for a mask without one channel of classes; it states the colours of one that has few."""
    colours: list[Any] = picture.convert("RGB").getcolors(MANY**2) or []
    stated = [f'NAME:"#{bytes(colour).hex()}"' for _, colour in sorted(colours, reverse=True)]
    example = ",".join(stated) or 'NAME:"#ff0000",...'
    return UserError(
        f"{path} is a mask of mode {picture.mode}",
        accepted=accepted,
        advice=[
            f"'data.values={{{example}}}', with a class's name, or ignore, for each colour",
            "data.threshold=127, where it is black and white",
        ],
    )


def _read_listed(path: Path, listed: Sequence[tuple[int, ...]]) -> RawMask:
    """Return the position in `listed` of each pixel's value or colour, and with a palette the colours of the values.

    Raises:
        UserError: a value or colour isn't listed.
    """
    coloured = len(listed[0]) == 3
    array, palette = stored_values(path, colours=coloured)
    if array.ndim != (3 if coloured else 2) or (coloured and array.dtype != np.uint8):
        accepted = "three channels of 8 bits for colours" if coloured else "one channel for values"
        raise UserError(f"{path} has {array.dtype} of shape {array.shape}", accepted=accepted)
    weights = np.array([1, 256, 65536][: len(listed[0])])
    codes = array.astype(np.int64) @ weights if coloured else array
    known = np.array([np.dot(value, weights) for value in listed])
    order = np.argsort(known)
    positions = order[np.searchsorted(known[order], codes).clip(max=len(known) - 1)].astype(np.uint8)
    unknown = known[positions] != codes
    if unknown.any():
        others = np.unique(array[unknown], axis=0)[:3].tolist()
        names = [f'"#{bytes(other).hex()}"' if isinstance(other, list) else f"{other:g}" for other in others]
        raise UserError(
            f"{path} has {', '.join(names)} in {unknown.sum():,} of its pixels, which data.values doesn't state",
            accepted=f"{len(listed)} values or colours that it does",
            advice="its meaning in data.values; ignore is the name of what doesn't count",
        )
    places = [3 * value[0] for value in listed if palette and 0 <= value[0] <= 255]
    return RawMask(positions, palette=b"".join(palette[place : place + 3].ljust(3, b"\0") for place in places))


def _above(path: Path, threshold: float) -> np.ndarray:
    """Return 1 where the grey of a mask is above a threshold, HxW uint8; of colours the brightest channel counts."""
    array, palette = stored_values(path)
    if palette:
        array, _ = stored_values(path, colours=True)
    if array.ndim == 3 and path.suffix.lower() == ".npy":
        raise UserError(f"{path} has shape {array.shape}", accepted="HxW with a threshold")
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        raise UserError(f"{path} has values that are no numbers (nan or infinite)", accepted="numbers")
    return ((array if array.ndim == 2 else array.max(axis=2)) > threshold).astype(np.uint8)


def stored_values(path: Path, colours: bool = False) -> tuple[np.ndarray, bytes]:
    """Return the values as they are stored, HxW, or HxWx3 colours, and the palette, if there is one.

    Args:
        path: of the mask.
        colours: return colours for greys and palettes, too.
    """
    if path.suffix.lower() == ".npy":
        return _array(path), b""
    try:
        with _opened(path) as picture:
            upright = ImageOps.exif_transpose(picture)
            palette = bytes(upright.getpalette("RGB") or ()) if picture.mode == "P" else b""
            if colours or not (_is_one_channel(picture) or picture.mode == "F"):
                return np.asarray(upright.convert("RGB")), palette
            return np.asarray(upright.convert("L") if picture.mode == "1" else upright), palette
    except UnidentifiedImageError:
        return _tiff_mask(path), b""


def _array(path: Path) -> np.ndarray:
    """Return the content of a NumPy file, HxW or HxWxC, of numbers."""
    array = np.load(path, allow_pickle=False)
    array = array[..., 0] if array.ndim == 3 and array.shape[2] == 1 else array
    if array.ndim not in (2, 3) or 0 in array.shape or array.dtype.kind not in "biuf":
        raise ValueError(f"an array of shape {array.shape} and type {array.dtype} is no mask")
    check_size(path, *array.shape[:2])
    return array.astype(np.uint8) if array.dtype == bool else array


def _tiff_mask(path: Path) -> np.ndarray:
    """Return the values, HxW, of a mask in a TIFF that PIL can't read."""
    if not is_tiff(path):
        raise UnidentifiedImageError
    with closing(TiffPicture(path, photometrics=("MINISBLACK",))) as stored:
        check_size(path, stored.height, stored.width)
        if stored.page.samplesperpixel != 1:
            raise ValueError(f"its values are {stored.page.samplesperpixel} of {stored.dtype} a pixel")
        return stored.raw(0, stored.height)[..., 0]


def mask_size(path: Path) -> tuple[int, int]:
    """Return H and W of a mask as it will be read, from the header of its file."""
    with decoding_errors(path):
        check_file(path)
        if path.suffix.lower() == ".npy":
            height, width = np.load(path, mmap_mode="r", allow_pickle=False).shape[:2]
            return height, width
        try:
            with Image.open(path, formats=FORMATS) as picture:
                return upright_size(picture)
        except UnidentifiedImageError:
            if not is_tiff(path):
                raise
            with closing(TiffPicture(path)) as stored:
                return stored.height, stored.width
