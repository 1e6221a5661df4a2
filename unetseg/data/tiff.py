"""TIFFs of any size, read and written by windows: at no time is a whole one in memory.

Legend: H x W pixels, S samples of a pixel.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tifffile

logging.getLogger("tifffile").addHandler(logging.NullHandler())  # or each oddity of a damaged file is printed

TIFF_MARKS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
"""The first bytes of a file; + is BigTIFF."""
LAYOUTS = "8 or 16 bits, grey or RGB, uncompressed or Deflate; LZW after pip install imagecodecs"
TILE = 512
"""Side of the tiles that are written."""
MAX_WIDTH = 2**17
MAX_SEGMENT = 2**28
"""Bytes of a tile or strip."""
TYPES = ("uint8", "int8", "uint16", "int16", "uint32", "int32", "float16", "float32", "float64")
LARGE = 200_000_000
"""Above so many pixels a file must be large enough to hold them."""
DENSEST = 1100
"""The highest compression ratio of Deflate, rounded up."""
COLOURS = {0: 1, 1: 1, 2: 3, 3: 1, 5: 4, 6: 3, 8: 3}
"""Colour samples of a pixel by the tag PhotometricInterpretation."""
ALPHA = (1, 2)


class UnknownLayout(Exception):
    """The TIFF can't be read by windows; another reader may know its layout."""


class TiffPicture:
    """The first page of a TIFF, read by rows.

    Raises:
        UnknownLayout: its layout is none of LAYOUTS.
        Exception: of any kind, by tifffile, on a damaged file.

    Examples:
        >>> from tempfile import TemporaryDirectory
        >>> with TemporaryDirectory() as folder:
        ...     write(Path(folder, "a.tif"), [np.zeros((40, 60, 3), np.uint8)], height=40, width=60)
        ...     picture = TiffPicture(Path(folder, "a.tif"))
        ...     picture.raw(10, 20).shape
        ...     picture.close()
        (10, 60, 3)
    """

    def __init__(self, path: Path, photometrics: tuple[str, ...] = ("MINISBLACK", "RGB")):
        self.path = path
        self.file = tifffile.TiffFile(path)
        try:
            self.page = self.file.pages[0].aspage()
            self._check(photometrics)
        except Exception:
            self.close()
            raise
        self.height, self.width = self.page.imagelength, self.page.imagewidth

    def close(self) -> None:
        self.file.close()

    def raw(self, start: int, stop: int) -> np.ndarray:
        """Return the rows from start to before stop as they are stored, hxWxS of one of TYPES."""
        page, file = self.page, self.file.filehandle
        shape = (stop - start, self.width, page.samplesperpixel)
        if page.is_memmappable:  # uncompressed, in one piece
            dtype = self.dtype.newbyteorder(self.file.byteorder)
            row_bytes = self.width * page.samplesperpixel * dtype.itemsize
            file.seek(page.dataoffsets[0] + start * row_bytes)
            stored = np.frombuffer(file.read((stop - start) * row_bytes), dtype)
            return stored.astype(self.dtype, copy=False).reshape(shape)
        rows = np.zeros(shape, self.dtype)
        tables = {"jpegtables": page.jpegtables, "jpegheader": page.jpegheader} if page.compression in (6, 7) else {}
        for index in range(start // self.step * self.across, -(-stop // self.step) * self.across):
            file.seek(page.dataoffsets[index])
            data = file.read(page.databytecounts[index]) or None
            segment, (_, _, y, x, _), (_, height, width, _) = page.decode(data, index, **tables)
            if segment is not None:  # a tile that the file leaves out is black
                top, end, right = max(start, y), min(stop, y + height), min(self.width, x + width)
                rows[top - start : end - start, x:right] = segment[0, top - y : end - y, : right - x]
        return rows

    def _check(self, photometrics: tuple[str, ...]) -> None:
        page = self.page
        kind = getattr(page.photometric, "name", str(page.photometric))
        orientation = page.tags.get("Orientation")
        if kind not in photometrics or page.dtype is None or str(page.dtype) not in TYPES:
            raise UnknownLayout(f"{kind} of {page.dtype}")
        check_samples(page.photometric, page.samplesperpixel, page.extrasamples)
        if tuple(page.extrasamples) == (1,):
            raise UnknownLayout("colours that are multiplied by their transparency")
        pages = (one.aspage() for one in self.file.pages)
        check_pages((one.imagewidth, one.imagelength, one.subfiletype) for one in pages)
        self.dtype = np.dtype(page.dtype)
        if (
            page.bitspersample != 8 * self.dtype.itemsize
            or page.planarconfig != 1
            or page.imagedepth != 1
            or page.samplesperpixel > 4
        ):
            raise UnknownLayout(f"{page.samplesperpixel} samples of {page.bitspersample} bits in planes or volumes")
        if orientation is not None and orientation.value != 1:
            raise UnknownLayout("a turned picture")
        pixels, size = page.imagewidth * page.imagelength, self.file.filehandle.size
        if pixels > LARGE and pixels * page.samplesperpixel * self.dtype.itemsize > DENSEST * size:
            raise ValueError(f"it claims {pixels:,} pixels, more than its {size:,} bytes can hold")
        if page.imagewidth > MAX_WIDTH:
            raise UnknownLayout(f"{page.imagewidth} pixels wide, more than {MAX_WIDTH}")
        if page.is_memmappable:
            if page.dataoffsets[0] + page.nbytes > self.file.filehandle.size:
                raise ValueError("the file is truncated")
            return
        self.step = page.tilelength if page.is_tiled else page.rowsperstrip
        self.across = -(-page.imagewidth // page.tilewidth) if page.is_tiled else 1
        if len(page.dataoffsets) != self.across * -(-page.imagelength // self.step):
            raise ValueError("the file lists fewer or more tiles than it has room for")
        side = page.tilewidth if page.is_tiled else page.imagewidth
        if side * min(self.step, page.imagelength) * page.samplesperpixel * self.dtype.itemsize > MAX_SEGMENT:
            raise UnknownLayout("in tiles or strips of more than 256 MB")
        try:
            page.decode(None, 0)
        except (ValueError, NotImplementedError) as error:
            raise UnknownLayout(str(error).splitlines()[0]) from None


def check_samples(photometric: int, samples: int, extra: Sequence[int]) -> None:
    """Raise a ValueError if a pixel has samples that are neither colours nor transparency by the file's tags.

    Args:
        photometric: the tag PhotometricInterpretation.
        samples: number of samples of a pixel.
        extra: the tag ExtraSamples: the meaning of the samples beyond the colours.
    """
    colours = COLOURS.get(int(photometric), samples)
    if samples != colours and not (samples == colours + 1 and len(extra) == 1 and extra[0] in ALPHA):
        raise ValueError(
            f"it has {samples} bands, of which {colours} {'is' if colours == 1 else 'are'} colour, and the others "
            "not said to be transparency; take out those that are to be seen"
        )


def check_pages(pages: Iterable[tuple[int, int, int]]) -> None:
    """Raise a ValueError if a page of a TIFF after the first is neither smaller nor said to be a copy or a mask of it.

    Args:
        pages: width, height and the tag NewSubfileType of each page.
    """
    first = 0
    for width, height, kind in pages:
        if first and width * height >= first and not kind & 5:
            raise ValueError("it has several pages")
        first = first or width * height


def directories(path: Path) -> int:
    """Return the number of a TIFF's image file directories, 0 where the chain of them is damaged.

    Other readers follow a damaged chain for minutes.
    """
    size, seen = path.stat().st_size, set()
    with path.open("rb") as file:
        order = {b"II": "little", b"MM": "big"}.get(file.read(2))
        big = order and int.from_bytes(file.read(2), order) == 43  # type: ignore[arg-type]
        count_bytes, entry, offset_bytes = (8, 20, 8) if big else (2, 12, 4)
        file.seek(8 if big else 4)
        while order and (offset := int.from_bytes(file.read(offset_bytes), order)):  # type: ignore[arg-type]
            if offset in seen or offset >= size:
                return 0
            seen.add(offset)
            file.seek(offset)
            end = offset + count_bytes + entry * int.from_bytes(file.read(count_bytes), order)  # type: ignore[arg-type]
            if end + offset_bytes > size:
                return 0
            file.seek(end)
    return len(seen)


def write(path: Path, rows: Iterable[np.ndarray], height: int, width: int, palette: np.ndarray | None = None) -> None:
    """Write a tiled, compressed TIFF from bands of rows.

    Args:
        path: the file.
        rows: hxW or hxWx3 uint8, of any h, from the top.
        height: H.
        width: W.
        palette: Px3 uint8: the colours of the values, for rows of hxW.
    """
    shape = (height, width) if palette is not None else (height, width, 3)
    big = math.prod(shape) > 2**31  # of the uncompressed size: the compressed one is not known before
    with tifffile.TiffWriter(path, bigtiff=big) as file:
        file.write(
            _tiles(rows, width), shape=shape, dtype=np.uint8, tile=(TILE, TILE), compression="zlib", metadata=None,
            **_colours(palette),
        )  # fmt: skip


def write_pages(path: Path, pages: np.ndarray, palette: np.ndarray | None = None) -> None:
    """Write a compressed TIFF of S pages: SxHxW uint8 with a palette, Px3 uint8, or SxHxWx3 uint8."""
    tifffile.imwrite(path, pages, compression="zlib", bigtiff=pages.nbytes > 2**31, **_colours(palette))


def _colours(palette: np.ndarray | None) -> dict[str, Any]:
    if palette is None:
        return {"photometric": "rgb"}
    table = np.zeros((3, 256), np.uint16)
    table[:, : len(palette)] = 257 * palette.T.astype(np.uint16)
    return {"photometric": "palette", "colormap": table}


def _tiles(rows: Iterable[np.ndarray], width: int) -> Iterator[np.ndarray]:
    """Cut rows of any height into TILE x TILE pieces, padded with zeros at the right and at the bottom."""
    waiting: list[np.ndarray] = []

    def pieces(band: np.ndarray) -> Iterator[np.ndarray]:
        for x in range(0, width, TILE):
            piece = np.zeros((TILE, TILE, *band.shape[2:]), np.uint8)
            part = band[:, x : x + TILE]
            piece[: part.shape[0], : part.shape[1]] = part
            yield piece

    for part in rows:
        waiting.append(part)
        while sum(map(len, waiting)) >= TILE:
            band = np.concatenate(waiting)
            waiting = [band[TILE:]]
            yield from pieces(band[:TILE])
    rest = np.concatenate(waiting)
    if len(rest):
        yield from pieces(rest)
