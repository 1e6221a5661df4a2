"""What predict writes: masks, overlays, probabilities and a table, each file whole or not at all.

    output/NAME.png              mask: one byte a pixel, the class, with a palette
    output/NAME.tif              the same as a tiled TIFF, for pictures above 100 megapixels
    output/overlay/NAME.png      the picture with the mask drawn (.tif as well)
    output/probability/NAME.npy  HxWxC float16: half the room of float32, and within 0.0003 of it
    output/predictions.csv       a row for each picture; names as `names.cell` writes them

Legend: H x W pixels, C classes, h rows of a band.
"""

from __future__ import annotations

import csv
import errno
import fcntl
import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image

from unetseg.data import tiff
from unetseg.data.pictures import ArrayPicture, Picture
from unetseg.errors import UserError
from unetseg.evaluation import overlays
from unetseg.files import drafted
from unetseg.inference.predictor import argmax
from unetseg.names import cell, shown

LARGE = 100_000_000
"""Pixels above which masks and overlays are TIFFs, written by windows; other programs open no larger PNGs."""
BAND = 512
COLOURS = overlays.PALETTE[np.r_[0, np.arange(255) % (len(overlays.PALETTE) - 1) + 1]]
"""256x3 uint8: the colour of each class, as in overlays.overlay."""

Predict = Callable[[Picture], Iterator[np.ndarray]]


@contextmanager
def claimed(folder: Path) -> Iterator[None]:
    """Keep other processes from predicting into a folder: its table has one writer.

    Raises:
        UserError: another process is at it.
    """
    path = folder / ".predict.lock"
    with open(os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK, 0o666), "rb+", buffering=0) as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            ours = os.path.exists(path) and os.path.samestat(os.fstat(lock.fileno()), path.stat())
        except OSError as error:  # some network file systems have no locks
            ours = error.errno not in (errno.EWOULDBLOCK, errno.EACCES)
        if not ours:
            raise UserError(
                f"{shown(folder)} is being predicted into by another process",
                accepted="one at a time: the table has a row for each mask",
                advice=("the same command when the other has ended", "another output=..."),
            )
        try:
            yield
        finally:
            path.unlink(missing_ok=True)


class Outputs:
    """The folder that predict writes to.

    Args:
        folder: is made if it isn't there.
        classes: names of the C classes.
        overlay: write overlays.
        probability: write probabilities.
        overwrite: write also what is there already.

    Raises:
        UserError: the folder's table is that of another model or of other pictures.
    """

    def __init__(self, folder: Path, classes: Sequence[str], *, overlay: bool, probability: bool, overwrite: bool):
        self.folder, self.classes, self.overwrite = folder, classes, overwrite
        self.overlay, self.probability = overlay, probability
        folder.mkdir(parents=True, exist_ok=True)
        for part in [*[folder / "overlay"] * overlay, *[folder / "probability"] * probability]:
            if part.is_symlink():
                raise UserError(f"{shown(part)} is a link, which may lead anywhere", accepted="a folder")
            part.mkdir(exist_ok=True)
        self.table = folder / "predictions.csv"
        self.header = ["picture", "mask", "width", "height", "seconds", *(f"share_{shown(name)}" for name in classes)]
        self.rows = self._read_table()
        self._write_table()

    def complete(self, path: Path) -> bool:
        """Return whether all that is asked for of this picture is there."""
        row = self.rows.get(cell(path.stem))
        if row and row[0] != cell(path.name):
            raise UserError(
                f"{shown(self.folder)} holds the mask of {row[0]}, "
                f"and that of {shown(path.name)} would have the same name",
                accepted="pictures whose names differ without their endings",
                advice="another output=...",
            )
        wanted = [self._there("", path), *[self._there("overlay", path)] * self.overlay]
        wanted += [os.path.exists(self._probabilities(path))] * self.probability
        return row is not None and all(wanted) and not self.overwrite

    def write(self, path: Path, picture: Picture, predict: Predict) -> None:
        """Write what is asked for of a picture and isn't there.

        Args:
            path: of the picture.
            picture: the same, opened.
            predict: maps it to its probabilities in bands of rows, hxWxC.
        """
        suffix = ".tif" if picture.height * picture.width > LARGE else ".png"
        mask = self.folder / f"{path.stem}{suffix}"
        overlay = self.folder / "overlay" / mask.name
        probabilities = self._probabilities(path) if self.probability else None
        if cell(path.stem) not in self.rows or self._due(mask) or (probabilities and self._due(probabilities)):
            self._predict(path, picture, predict, mask, probabilities)
        if self.overlay and self._due(overlay):
            with drafted(overlay) as draft:
                _save(draft, suffix, drawn(picture, mask), picture, palette=None)

    def finish(self) -> None:
        """Write the table anew, each picture once."""
        self._write_table()

    def _predict(
        self,
        path: Path,
        picture: Picture,
        predict: Predict,
        mask: Path,
        probabilities: Path | None,
    ) -> None:
        begin = time.perf_counter()
        counts = np.zeros(len(self.classes), np.int64)

        def masks(file: BinaryIO | None) -> Iterator[np.ndarray]:
            for band in predict(picture):
                if file:
                    file.write(band.astype(np.float16).tobytes())
                classes = argmax(band)
                counts[:] += np.bincount(classes.ravel(), minlength=len(counts))
                yield classes

        def save(file: BinaryIO | None) -> None:
            if self._due(mask):
                with drafted(mask) as draft:
                    _save(draft, mask.suffix, masks(file), picture, palette=COLOURS)
            else:
                for _ in masks(file):
                    pass

        if probabilities and self._due(probabilities):
            shape = (picture.height, picture.width, len(self.classes))
            with drafted(probabilities) as draft, draft.open("wb") as file:
                header = {"descr": np.lib.format.dtype_to_descr(np.dtype(np.float16)), "fortran_order": False}
                np.lib.format.write_array_header_1_0(file, {**header, "shape": shape})
                save(file)
        else:
            save(None)
        row = [cell(path.name), cell(mask.name), picture.width, picture.height, f"{time.perf_counter() - begin:.3f}"]
        self.rows[cell(path.stem)] = [*map(str, row), *(f"{share:.6f}" for share in counts / counts.sum())]
        with self.table.open("a", newline="", encoding="utf-8") as table:
            csv.writer(table).writerow(self.rows[cell(path.stem)])

    def _due(self, file: Path) -> bool:
        return self.overwrite or not os.path.exists(file)

    def _there(self, part: str, path: Path) -> bool:
        return any(os.path.exists(self.folder / part / f"{path.stem}{suffix}") for suffix in (".png", ".tif"))

    def _probabilities(self, path: Path) -> Path:
        return self.folder / "probability" / f"{path.stem}.npy"

    def _read_table(self) -> dict[str, list[str]]:
        """Return the whole rows of the table by the masks' names; a killed run may have left a part of one."""
        if not self.table.exists():
            return {}
        text = self.table.read_text(encoding="utf-8", errors="replace")
        whole = [f"{line}\n" for line in text.split("\n")[:-1]]
        try:
            header, *rows = list(csv.reader(whole or [text])) or [self.header]
        except csv.Error as error:
            raise UserError(f"{shown(self.table)} can't be read: {error}", advice="another output=...") from None
        if header != self.header:
            raise UserError(
                f"{shown(self.table)} is of another kind: its columns are {shown(', '.join(header))}",
                accepted=", ".join(self.header),
                advice="another output=...",
            )
        return {Path(row[1]).stem: row for row in rows if len(row) == len(header)}

    def _write_table(self) -> None:
        with drafted(self.table) as draft, draft.open("w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows([self.header, *self.rows.values()])


def drawn(picture: Picture, mask: Path) -> Iterator[np.ndarray]:
    """Yield bands of the picture, hxWx3 uint8, with its mask drawn."""
    with masks_of(mask, picture) as stored:
        for start in range(0, picture.height, BAND):
            stop = min(start + BAND, picture.height)
            yield overlays.overlay(picture.rows(start, stop), stored(start, stop))


@contextmanager
def masks_of(path: Path, picture: Picture) -> Iterator[Callable[[int, int], np.ndarray]]:
    """Open a picture's mask that was written here: maps start and stop to rows, hxW uint8."""
    if path.suffix == ".png":
        with Image.open(path, formats=("PNG",)) as image:
            if image.mode != "P" or image.size != (picture.width, picture.height):
                raise UserError(f"{path} is no mask of this picture", advice="overwrite=true, or another output=...")
            whole = ArrayPicture(np.asarray(image))
        yield whole.rows
    else:
        stored = tiff.TiffPicture(path, photometrics=("PALETTE",))
        try:
            if (stored.width, stored.height) != (picture.width, picture.height):
                raise UserError(f"{path} is no mask of this picture", advice="overwrite=true, or another output=...")
            yield lambda start, stop: stored.raw(start, stop)[..., 0]
        finally:
            stored.close()


def _save(path: Path, suffix: str, bands: Iterable[np.ndarray], picture: Picture, palette: np.ndarray | None) -> None:
    """Write bands of classes, hxW with a palette, or of colours, hxWx3 uint8, as a PNG or a TIFF."""
    if suffix == ".tif":
        tiff.write(path, bands, picture.height, picture.width, palette)
        return
    image = Image.fromarray(np.concatenate(list(bands)))
    if palette is not None:
        image.putpalette(palette.tobytes())
    image.save(path, "PNG", compress_level=1 if palette is None else 6)
