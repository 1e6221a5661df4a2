"""The pictures that `images` selects: a file, a folder, a pattern, or several files a picture."""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

from unetseg.data.joined import join_files, order_bands
from unetseg.data.layout import Pattern, files_below, find
from unetseg.data.pictures import IMAGE_SUFFIXES, Picture, open_picture
from unetseg.data.published import SUFFIXES, channels_of
from unetseg.data.view import View
from unetseg.data.volumes import Volume, has_slices
from unetseg.errors import UserError
from unetseg.names import shown

NAMED = 5
"""Files that are named where more are counted."""
MANY = 10_000
"""Pictures in further folders are counted up to here."""


@dataclass(frozen=True)
class Selection:
    """The files that `images` selects, and those that it doesn't."""

    files: list[Path]
    """The pictures."""
    others: list[Path]
    """Other files of the folder."""
    below: int
    """The number of pictures in folders of the folder."""
    channels: dict[Path, dict[str, Path]] = field(default_factory=dict)
    """The file of each channel of those pictures that have several; such a picture's path is no file's."""

    def notes(self, option: str = "images") -> list[str]:
        """Return a sentence on each kind of files that an option's value doesn't select."""
        lines = []
        if self.others:
            names = ", ".join(shown(path.name) for path in self.others[:NAMED])
            more = ", ..." if len(self.others) > NAMED else ""
            lines.append(f"{len(self.others)} passed over, by their names no pictures: {names}{more}")
        if self.below:
            count = f"{self.below} or more" if self.below == MANY else self.below
            lines.append(f"{count} pictures in further folders are not taken: {option}='FOLDER/**/*' takes them")
        return lines

    def order(self, view: View) -> list[str]:
        """Return the channels that have files of their own in the order in which the model gets them."""
        return [*(view.bands or order_bands(band for files in self.channels.values() for band in files))]

    @contextmanager
    def open(self, path: Path, view: View) -> Iterator[Picture | Volume]:
        """Open one of the files: a picture as a model sees it, or a volume of them; errors as `open_picture`."""
        if path not in self.channels and has_slices(path, view):
            yield Volume(path, view)
            return
        own = join_files(path.stem, self.channels[path], self.order(view)) if path in self.channels else path
        with open_picture(own, view) as picture:
            yield picture


def select_channels(images: str, output: Path) -> Selection:
    """Return the pictures whose channels are files of their own, by a pattern such as FOLDER/{name}_{channel}.tif."""
    fixed = Path(re.split(r"[{*]", images)[0] + "x").parent
    pattern = Pattern("images", Path(images).relative_to(fixed).as_posix())
    if pattern.fields != {"name", "channel"}:
        raise UserError(f"images={images} is not accepted", accepted="FOLDER/{name}_{channel}.tif, with both fields")
    inside = [file for file in files_below(fixed) if file.lower().endswith((*IMAGE_SUFFIXES, ".npy"))]
    if output.resolve() != fixed.resolve():  # which is refused
        inside = [file for file in inside if output.resolve() not in (fixed / file).resolve().parents]
    found = find(fixed, inside, pattern)
    pictures = {
        fixed / f"{place.name.replace('/', '_')}.channels": {
            channel: fixed / file for channel, file in channels_of(pattern, files).items()
        }
        for place, files in found.items()
    }
    if len(pictures) < len(found):
        raise UserError(f"images={images} has names that differ in / and _ alone", accepted="one mask for each name")
    return Selection([*pictures], [], 0, pictures)


def select_files(images: str, output: Path) -> Selection:
    """Return the file itself, the pictures in the folder, or the files of the pattern.

    Args:
        images: a file, a folder or a pattern.
        output: folder of the masks, which don't count as pictures below a folder.
    """

    def has_ending(name: str) -> bool:
        return name.lower().endswith(SUFFIXES)

    def is_picture(name: str) -> bool:
        return has_ending(name) and not name.startswith(".")

    path = Path(images)
    if "{channel}" in images and not path.exists():
        return select_channels(images, output)
    if path.is_dir():
        inside = sorted(path.iterdir())
        files = [p for p in inside if is_picture(p.name)]
        hidden = {p for p in inside if p.name.startswith(".") and not has_ending(p.name)}
    else:
        inside = [path] if path.exists() else sorted(map(Path, glob.glob(images, recursive=True)))
        files, hidden = [p for p in inside if not p.is_dir()], set()
    taken = {*files, *hidden}
    others = [p for p in inside if p not in taken and not p.is_dir()]
    below = (p for folder in inside if folder.is_dir() for p in _files_below(folder, output) if is_picture(p.name))
    return Selection(files, others, len(set(islice(below, MANY)) - taken))


def _files_below(folder: Path, output: Path) -> Iterator[Path]:
    """Yield all files below a folder, except those of the output."""
    for parent, folders, names in os.walk(folder):
        if Path(parent).resolve() == output.resolve():
            folders.clear()
        else:
            yield from (Path(parent, name) for name in names)
