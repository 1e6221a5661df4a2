"""Pictures whose channels, here bands, lie in files of their own: {name}_{channel}.tif.

For training the files of a picture are joined once, as a TIFF of all bands, in the folder of the caches, and read from
there like any picture. Bands are in the order that is stated, or of their names: red, green and blue first where there
are these three, then the others, whose numbers count as numbers: B2 lies before B10.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
import tifffile
from rich.progress import track

from unetseg.data.cache import made_folder
from unetseg.data.channels import stored_values
from unetseg.data.pictures import Unreadable, decoding_errors
from unetseg.data.store import file_state
from unetseg.data.view import RGB
from unetseg.errors import UserError
from unetseg.files import drafted

VERSION = 1
"""Of how bands are joined."""
COLOURS = ("red", "green", "blue")


def order_bands(names: Iterable[str]) -> list[str]:
    """Return the names of bands in their order.

    Examples:
        >>> order_bands(["B10", "B2", "B8A"]), order_bands(["blue", "green", "nir", "red"])
        (['B2', 'B8A', 'B10'], ['red', 'green', 'blue', 'nir'])
    """
    unique = {*names}
    colours = {name: COLOURS.index(own) for name in unique for own in COLOURS if name.lower() in (own, own[0])}
    if sorted(colours.values()) != [0, 1, 2]:
        colours = {}
    return sorted(unique, key=lambda name: (colours.get(name, len(COLOURS)), _numbers_as_numbers(name), name))


def join(pictures: Mapping[str, Mapping[str, Path]], bands: Sequence[str]) -> dict[str, Path]:
    """Write each picture as one file of all bands, unless it is there; return the files by name.

    Args:
        pictures: of each picture, the file of each band.
        bands: the bands to take, in their order.

    Raises:
        UserError: as `join_files`, or there is no room.
    """
    joined: dict[str, Path] = {}
    with made_folder("joined") as folder:
        for name, files in track(pictures.items(), "joining channels", transient=True):
            _check_complete(name, files, bands)
            key = hashlib.sha256(f"{VERSION}".encode())
            for band in bands:
                key.update(f"{files[band].absolute()} {file_state(files[band])}".encode(errors="surrogateescape"))
            own = folder / key.hexdigest()[:32]
            joined[name] = own / f"{name.replace('/', '_')}.tif"
            if not joined[name].exists():
                array = join_files(name, files, bands)
                own.mkdir(mode=0o700, exist_ok=True)
                with drafted(joined[name]) as draft:
                    _write(draft, array)
    return joined


def join_files(name: str, files: Mapping[str, Path], bands: Sequence[str]) -> np.ndarray:
    """Return a picture's bands as they are stored, HxWxC.

    Raises:
        UserError: it lacks a band, its files differ in size, or in type where they are red, green and blue; or one
            can't be read.
    """
    _check_complete(name, files, bands)
    planes: list[np.ndarray] = []
    first = files[bands[0]]
    for file in (files[band] for band in bands):
        if not file.is_file():
            raise Unreadable(f"{file} is no file", accepted="a picture")
        with decoding_errors(file):
            array = np.atleast_3d(stored_values(file))
            if planes and array.shape[:2] != planes[0].shape:
                (height, width), (own_height, own_width) = array.shape[:2], planes[0].shape
                raise UserError(
                    f"{file} has {height} x {width} pixels, {first.name} {own_height} x {own_width}",
                    accepted="channels of one size",
                    advice="files of one resolution, resampled to the finest",
                )
            planes.extend(np.moveaxis(array, -1, 0))
    types = sorted({str(plane.dtype) for plane in planes})
    if len(planes) == RGB and len(types) > 1:
        raise UserError(
            f"the files of {name} are of {' and '.join(types)}: one value has several meanings",
            accepted="red, green and blue of one type",
        )
    return np.stack(planes, axis=-1)


def _check_complete(name: str, files: Mapping[str, Path], bands: Sequence[str]) -> None:
    absent = [band for band in bands if band not in files]
    if absent:
        raise UserError(
            f"{name} has no file for {', '.join(absent)}",
            accepted=f"each of {', '.join(bands)} for every picture",
            advice="other data.bands, or a pattern that fits only channels which every picture has",
        )


def _write(path: Path, array: np.ndarray) -> None:
    """Write bands, HxWxC, as one page: three as red, green and blue."""
    if array.shape[-1] == RGB:
        tifffile.imwrite(path, array, photometric="rgb", metadata=None)
    else:
        planes = np.moveaxis(array, -1, 0)
        tifffile.imwrite(path, planes, photometric="minisblack", planarconfig="separate", metadata=None)


def _numbers_as_numbers(name: str) -> list[str | int]:
    return [int(part) if part.isdecimal() else part for part in re.split(r"(\d+)", name)]
