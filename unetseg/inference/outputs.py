"""The files that predict writes: masks, overlays, probabilities and a table, each file completely or not at all.

    output/NAME.png              mask: one byte a pixel, the class, with a palette
    output/NAME.tif              the same as a tiled TIFF, for pictures above 100 megapixels
    output/NAME.tif, .nii.gz     the masks of a stack or a volume, as it lies
    output/overlay/NAME.png      the picture with the mask drawn on it (.tif as well)
    output/overlay/legend.png    the names of the classes beside their colours
    output/probability/NAME.npy  HxWxC float16: half the size of float32, and within 0.0003 of it
    output/predictions.csv       a row for each picture; names as `names.cell` writes them

Legend: H x W pixels, S slices, C classes, h rows of a band.
"""

from __future__ import annotations

import csv
import errno
import fcntl
import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from itertools import chain
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image

from unetseg.data import tiff
from unetseg.data.channels import displayed
from unetseg.data.colours import class_colours, is_background, legend, overlay
from unetseg.data.legend import STEM, draw_legend
from unetseg.data.pictures import ArrayPicture, Picture
from unetseg.data.tiling import argmax
from unetseg.data.view import View
from unetseg.data.volumes import Volume, is_nifti, read_volume
from unetseg.errors import UserError
from unetseg.files import drafted
from unetseg.names import cell, shown

LARGE = 100_000_000
"""Pixels above which masks and overlays are TIFFs, written by windows; other programs open no larger PNGs."""
BAND = 512

Predict = Callable[[Picture], Iterator[np.ndarray]]


@contextmanager
def lock_folder(folder: Path) -> Iterator[None]:
    """Keep other processes from predicting into a folder: its table has one writer.

    Raises:
        UserError: another process is predicting into it.
    """
    path = folder / ".predict.lock"
    with open(os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK, 0o666), "rb+", buffering=0) as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            acquired = os.path.exists(path) and os.path.samestat(os.fstat(lock.fileno()), path.stat())
        except OSError as error:  # some network file systems have no locks
            acquired = error.errno not in (errno.EWOULDBLOCK, errno.EACCES)
        if not acquired:
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
        folder: is created if it doesn't exist.
        classes: names of the C classes.
        overlay: write overlays.
        probability: write probabilities.
        overwrite: replace files that exist.
        view: how overlays show pictures of other channels than RGB.

    Raises:
        UserError: the folder's table belongs to another model or to other pictures.

    Examples:
        >>> from tempfile import TemporaryDirectory
        >>> with TemporaryDirectory() as folder:
        ...     outputs = Outputs(Path(folder), ["a", "b"], overlay=False, probability=False, overwrite=False)
        ...     outputs.is_complete(Path("cat.jpg"))
        False
    """

    def __init__(
        self,
        folder: Path,
        classes: Sequence[str],
        *,
        overlay: bool,
        probability: bool,
        overwrite: bool,
        view: View | None = None,
    ):
        self.folder, self.classes, self.overwrite, self.view = folder, classes, overwrite, view or View()
        self.overlay, self.probability = overlay, probability
        self.background = is_background(classes)
        self.colours = class_colours(background=self.background)
        """256x3 uint8: the colour of each class, as in colours.overlay."""
        folder.mkdir(parents=True, exist_ok=True)
        for name, is_written in (("overlay", overlay), ("probability", probability)):
            if is_written:
                part = folder / name
                if part.is_symlink():
                    raise UserError(f"{shown(part)} is a link, which may lead anywhere", accepted="a folder")
                part.mkdir(exist_ok=True)
        self.table = folder / "predictions.csv"
        self.header = ["picture", "mask", "width", "height", "seconds", *(f"share_{shown(name)}" for name in classes)]
        self.rows = self._read_table()
        self.write_table()
        self.legend = folder / "overlay" / f"{STEM}.png"
        if overlay and self._is_due(self.legend):
            with drafted(self.legend) as draft:
                Image.fromarray(draw_legend(legend(classes))).save(draft, "PNG")

    def is_complete(self, path: Path) -> bool:
        """Return whether all files of this picture exist and need not be replaced."""
        row = self.rows.get(cell(stem(path)))
        if row and row[0] != cell(path.name):
            raise UserError(
                f"{shown(self.folder)} holds the mask of {row[0]}, "
                f"and that of {shown(path.name)} would have the same name",
                accepted="pictures whose names differ without their endings",
                advice="another output=...",
            )
        return (
            row is not None
            and not self.overwrite
            and self._mask_exists("", path)
            and (not self.overlay or self._mask_exists("overlay", path))
            and (not self.probability or os.path.exists(self._probability_path(path)))
        )

    def write(self, path: Path, picture: Picture | Volume, predict: Predict) -> None:
        """Write the files of a picture that don't exist or are to be replaced.

        Args:
            path: of the picture.
            picture: the opened picture, or a volume.
            predict: maps a picture to its probabilities in bands of rows, hxWxC.
        """
        suffix = ".tif" if isinstance(picture, Volume) or picture.height * picture.width > LARGE else ".png"
        drawn = self.folder / "overlay" / f"{stem(path)}{suffix}"
        mask = self.folder / (path.name if is_nifti(path) else drawn.name)
        probabilities = self._probability_path(path) if self.probability else None
        if not self._is_due(mask):
            _check_mask(mask, picture)
        if cell(stem(path)) not in self.rows or self._is_due(mask) or (probabilities and self._is_due(probabilities)):
            self._predict(path, picture, predict, mask, probabilities)
        if self.overlay and self._is_due(drawn):
            with drafted(drawn) as draft:
                if isinstance(picture, Volume):
                    _save_overlays(draft, picture, mask, self.view, self.background)
                else:
                    bands = overlay_bands(picture, mask, self.view, self.background)
                    _save(draft, suffix, bands, picture, palette=None)

    def _predict(
        self, path: Path, picture: Picture | Volume, predict: Predict, mask: Path, probabilities: Path | None
    ) -> None:
        begin = time.perf_counter()
        counts = np.zeros(len(self.classes), np.int64)

        def masks(file: BinaryIO | None) -> Iterator[np.ndarray]:
            for band in chain.from_iterable(map(predict, picture)) if isinstance(picture, Volume) else predict(picture):
                if file:
                    file.write(band.astype(np.float16).tobytes())
                classes = argmax(band)
                counts[:] += np.bincount(classes.ravel(), minlength=len(counts))
                yield classes

        def save(file: BinaryIO | None) -> None:
            if self._is_due(mask):
                with drafted(mask) as draft:
                    if isinstance(picture, Volume):
                        _save_volume(draft, picture, masks(file), self.colours)
                    else:
                        _save(draft, mask.suffix, masks(file), picture, palette=self.colours)
            else:
                for _ in masks(file):
                    pass

        if probabilities and self._is_due(probabilities):
            slices = [len(picture)] if isinstance(picture, Volume) else []
            shape = (*slices, picture.height, picture.width, len(self.classes))
            with drafted(probabilities) as draft, draft.open("wb") as file:
                header = {"descr": np.lib.format.dtype_to_descr(np.dtype(np.float16)), "fortran_order": False}
                np.lib.format.write_array_header_1_0(file, {**header, "shape": shape})
                save(file)
        else:
            save(None)
        row = [cell(path.name), cell(mask.name), picture.width, picture.height, f"{time.perf_counter() - begin:.3f}"]
        self.rows[cell(stem(path))] = [*map(str, row), *(f"{share:.6f}" for share in counts / counts.sum())]
        with self.table.open("a", newline="", encoding="utf-8") as table:
            csv.writer(table).writerow(self.rows[cell(stem(path))])

    def _is_due(self, file: Path) -> bool:
        return self.overwrite or not os.path.exists(file)

    def _mask_exists(self, part: str, path: Path) -> bool:
        names = {f"{stem(path)}.png", f"{stem(path)}.tif", *([path.name] if is_nifti(path) else [])}
        return any(os.path.exists(self.folder / part / name) for name in names)

    def _probability_path(self, path: Path) -> Path:
        return self.folder / "probability" / f"{stem(path)}.npy"

    def _read_table(self) -> dict[str, list[str]]:
        """Return the complete rows of the table by the masks' names; a killed process may leave a part of a row."""
        if not self.table.exists():
            return {}
        text = self.table.read_text(encoding="utf-8", errors="replace")
        lines = [f"{line}\n" for line in text.split("\n")[:-1]]
        try:
            header, *rows = list(csv.reader(lines or [text])) or [self.header]
        except csv.Error as error:
            raise UserError(f"{shown(self.table)} can't be read: {error}", advice="another output=...") from None
        if header != self.header:
            raise UserError(
                f"{shown(self.table)} is of another kind: its columns are {shown(', '.join(header))}",
                accepted=", ".join(self.header),
                advice="another output=...",
            )
        return {stem(Path(row[1])): row for row in rows if len(row) == len(header)}

    def write_table(self) -> None:
        """Write the table anew, with one row for each picture."""
        with drafted(self.table) as draft, draft.open("w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows([self.header, *self.rows.values()])


def stem(path: Path) -> str:
    """Return a file's name without its ending, which has two parts where a volume is compressed."""
    return path.name[: -len(".nii.gz")] if path.name.lower().endswith(".nii.gz") else path.stem


def _check_mask(mask: Path, picture: Picture | Volume) -> None:
    """Raise a UserError where a file that lies in a mask's place is no mask of this picture."""
    try:
        if isinstance(picture, Volume):
            masks, _ = read_volume(mask)
            fits = masks.dtype == np.uint8 and masks.shape == (len(picture), picture.height, picture.width)
        else:
            with open_mask(mask, picture):
                fits = True
    except Exception:  # whatever the file may be
        fits = False
    if not fits:
        raise UserError(f"{mask} is no mask of this picture", advice="overwrite=true, or another output=...")


def _save_volume(path: Path, volume: Volume, bands: Iterable[np.ndarray], palette: np.ndarray) -> None:
    """Write bands of the classes of all slices as NIfTI, or as a TIFF of pages with a palette."""
    masks = np.concatenate(list(bands)).reshape(len(volume), volume.height, volume.width)
    if is_nifti(volume.path):
        volume.write_mask(path, masks)
    else:
        tiff.write_pages(path, masks, palette)


def _save_overlays(path: Path, volume: Volume, mask: Path, view: View, background: bool) -> None:
    """Write the slices with their masks drawn on them as a TIFF of pages."""
    masks, _ = read_volume(mask)
    shown = (displayed(picture.rows(0, picture.height), view) for picture in volume)
    pages = [overlay(*pair, background=background) for pair in zip(shown, masks, strict=True)]
    tiff.write_pages(path, np.stack(pages))


def overlay_bands(picture: Picture, mask: Path, view: View, background: bool) -> Iterator[np.ndarray]:
    """Yield bands of the picture, hxWx3 uint8, with its mask drawn on them."""
    with open_mask(mask, picture) as mask_rows:
        for start in range(0, picture.height, BAND):
            stop = min(start + BAND, picture.height)
            above, below = max(start - 1, 0), min(stop + 1, picture.height)  # outlines reach a row further
            image = displayed(picture.rows(above, below), view)
            drawn = overlay(image, mask_rows(above, below), background=background)
            yield drawn[start - above : stop - above]


@contextmanager
def open_mask(path: Path, picture: Picture) -> Iterator[Callable[[int, int], np.ndarray]]:
    """Open a picture's mask that `Outputs` has written, as a function from start and stop to rows, hxW uint8."""
    if path.suffix == ".png":
        with Image.open(path, formats=("PNG",)) as image:
            if image.mode != "P" or image.size != (picture.width, picture.height):
                raise UserError(f"{path} is no mask of this picture", advice="overwrite=true, or another output=...")
            mask = ArrayPicture(np.asarray(image))
        yield mask.rows
    else:
        with closing(tiff.TiffPicture(path, photometrics=("PALETTE",))) as stored:
            if (stored.width, stored.height) != (picture.width, picture.height):
                raise UserError(f"{path} is no mask of this picture", advice="overwrite=true, or another output=...")
            yield lambda start, stop: stored.raw(start, stop)[..., 0]


def _save(path: Path, suffix: str, bands: Iterable[np.ndarray], picture: Picture, palette: np.ndarray | None) -> None:
    """Write bands of classes, hxW with a palette, or of colours, hxWx3 uint8, as a PNG or a TIFF."""
    if suffix == ".tif":
        tiff.write(path, bands, picture.height, picture.width, palette)
        return
    image = Image.fromarray(np.concatenate(list(bands)))
    if palette is not None:
        image.putpalette(palette.tobytes())
    image.save(path, "PNG", compress_level=1 if palette is None else 6)
