"""Pictures whose channels lie in files of their own: {name}_{channel}.tif.

The files of a picture are joined once, as a TIFF of all channels, in the folder of the caches, and read from there like
any picture. Channels are in the order of their names, whose numbers count as numbers: B2 lies before B10.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import tifffile
from rich.progress import track

from unetseg.data.cache import made_folder
from unetseg.data.channels import stored_values
from unetseg.data.pictures import Unreadable, decoding_errors
from unetseg.data.survey import file_state
from unetseg.errors import UserError
from unetseg.files import drafted

VERSION = 1
"""Of how channels are joined."""


def order_channels(pictures: Mapping[str, Mapping[str, Path]]) -> list[str]:
    """Return the names of the channels, which every picture must have, in their order.

    Args:
        pictures: of each picture, the file of each channel.

    Raises:
        UserError: a picture lacks a channel.
    """
    names = sorted({channel for files in pictures.values() for channel in files}, key=_numbers_as_numbers)
    for name, files in pictures.items():
        absent = [channel for channel in names if channel not in files]
        if absent:
            raise UserError(
                f"{name} has no file for {', '.join(absent)}, which others have",
                accepted=f"each of {', '.join(names)} for every picture",
                advice="a pattern in data.images that fits only the files of channels that every picture has",
            )
    return names


def join(pictures: Mapping[str, Mapping[str, Path]]) -> dict[str, Path]:
    """Write each picture as one file of all channels, unless it is there; return the files by name.

    Raises:
        UserError: a picture lacks a channel, its files differ in size, one can't be read, or there is no room.
    """
    order = order_channels(pictures)
    joined: dict[str, Path] = {}
    with made_folder("joined") as folder:
        for name, files in track(pictures.items(), "joining channels", transient=True):
            key = hashlib.sha256(f"{VERSION}".encode())
            for channel in order:
                key.update(f"{files[channel].absolute()} {file_state(files[channel])}".encode(errors="surrogateescape"))
            own = folder / key.hexdigest()[:32]
            joined[name] = own / f"{name.replace('/', '_')}.tif"
            if not joined[name].exists():
                array = _join([files[channel] for channel in order])
                own.mkdir(mode=0o700, exist_ok=True)
                with drafted(joined[name]) as draft:
                    _write(draft, array)
    return joined


def _join(files: list[Path]) -> np.ndarray:
    """Return the channels of files of one size, CxHxW."""
    planes: list[np.ndarray] = []
    for file in files:
        if not file.is_file():
            raise Unreadable(f"{file} is no file", accepted="a picture")
        with decoding_errors(file):
            array = stored_values(file)
            own = np.atleast_3d(array)
            if planes and own.shape[:2] != planes[0].shape:
                (height, width), first = own.shape[:2], planes[0].shape
                raise UserError(
                    f"{file} has {height} x {width} pixels, {files[0].name} {first[0]} x {first[1]}",
                    accepted="channels of one size",
                    advice="files of one resolution, resampled to the finest",
                )
            planes.extend(np.moveaxis(own, -1, 0))
    return np.stack(planes)


def _write(path: Path, array: np.ndarray) -> None:
    """Write channels as one page: three as red, green and blue."""
    if len(array) == 3:
        tifffile.imwrite(path, np.moveaxis(array, 0, -1), photometric="rgb", metadata=None)
    else:
        tifffile.imwrite(path, array, photometric="minisblack", planarconfig="separate", metadata=None)


def _numbers_as_numbers(name: str) -> list[str | int]:
    return [int(part) if part.isdecimal() else part for part in re.split(r"(\d+)", name)]
