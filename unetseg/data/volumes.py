"""Volumes and stacks: NIfTI files, and TIFFs of several pages, whose slices are the pictures.

The slices are written once, as TIFFs of the stored type, into the folder of the caches, and read from there like any
picture. A NIfTI volume is turned to its axes right, anterior, superior; its slices are axial, with the anterior side
above.
"""

from __future__ import annotations

import gzip
import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
from rich.progress import track

from unetseg.data.cache import made_folder
from unetseg.data.dataset import Pair
from unetseg.data.pictures import CODECS, ArrayPicture, Picture, decoding_errors, open_picture
from unetseg.data.splits import Drawing
from unetseg.data.store import file_state
from unetseg.data.tiff import TIFF_MARKS, directories
from unetseg.data.view import RGB, View
from unetseg.errors import UserError, first_line

NIFTI = (".nii", ".nii.gz")
VERSION = 2
"""Of how slices are written."""
GROUP = "{group}_slice*"
"""By which the slices of a volume stay in one split."""
PLACE = 1e-3
"""Millimetres by which the affine matrices of a volume and its mask may differ."""
LOOKED_AT = 16
"""Examples that are opened to see whether they are volumes."""
FEWEST = 3
"""Volumes that can be divided into training, validation and test."""


def expand(
    examples: Mapping[str, Pair], given: Mapping[str, str], drawing: Drawing
) -> tuple[dict[str, Pair], dict[str, str], Drawing, list[str]]:
    """Replace volumes by their slices, NAME_slice000, NAME_slice001, ...

    Args:
        examples: by name; where one of the first is a volume all are, of one slice at least.
        given: the splits that are stated, by name.
        drawing: how other splits are drawn; slices of a volume are made a group where no group is stated.

    Returns:
        The three for the slices, and what the user is told.

    Raises:
        UserError: a picture and its mask differ in shape, a file can't be read, or there is no room for the slices.
    """
    if not any(is_volume(Path(pair.image), Path(pair.mask)) for pair in islice(examples.values(), LOOKED_AT)):
        return dict(examples), dict(given), drawing, []
    slices: dict[str, Pair] = {}
    splits: dict[str, str] = {}
    for name, pair in track(examples.items(), "cutting volumes into slices", transient=True):
        for number, (image, mask) in enumerate(_slices(Path(pair.image), Path(pair.mask))):
            own = f"{name}_slice{number:03}"
            slices[own] = Pair(str(image), str(mask))
            if name in given:
                splits[own] = given[name]
    notes = [f"{len(examples)} volumes, {len(slices)} slices" if len(examples) > 1 else f"{len(slices)} slices"]
    if drawing.group is None and len(examples) >= FEWEST:
        drawing = replace(drawing, group=GROUP)
    elif drawing.group is None and len({*splits.values()}) < 2:
        notes.append("slices of one volume are in several splits: they are alike, and scores say little of new volumes")
    return slices, splits, drawing, notes


def is_volume(image: Path, mask: Path) -> bool:
    """Return whether the files of an example are NIfTI, or TIFFs of several pages, as many in both."""
    files = (image, mask)
    if any(map(is_nifti, files)):
        return True
    pages = {_pages(path) for path in files}
    return len(pages) == 1 and pages.pop() > 1


def is_nifti(path: Path) -> bool:
    return path.name.lower().endswith(NIFTI)


def has_slices(path: Path, view: View) -> bool:
    """Return whether a picture of no mask is a volume: NIfTI, or a TIFF of several pages that aren't its channels."""
    return is_nifti(path) or _pages(path) not in (0, 1, 1 if view.channels == RGB else view.channels)


class Volume:
    """The slices of a volume to predict, each as a view sees a picture.

    Args:
        path: of a file that `has_slices`.
        view: how the model sees pictures.

    Raises:
        UserError: it can't be read, or, on iteration, a slice is no picture for this view.

    Examples:
        >>> from tempfile import TemporaryDirectory
        >>> with TemporaryDirectory() as folder:
        ...     tifffile.imwrite(path := Path(folder, "stack.tif"), np.zeros((5, 32, 48), np.uint8))
        ...     [picture.rows(0, 1).shape for picture in Volume(path, View())]
        [(1, 48, 3), (1, 48, 3), (1, 48, 3), (1, 48, 3), (1, 48, 3)]
    """

    def __init__(self, path: Path, view: View):
        _check_picture(path)
        self.path, self.view = path, view
        self.planes, _ = read_volume(path)
        self.height, self.width = self.planes.shape[1:3]

    def __len__(self) -> int:
        return len(self.planes)

    def __iter__(self) -> Iterator[Picture]:
        for plane in self.planes:
            with decoding_errors(self.path), open_picture(plane, self.view) as picture:
                array = picture.rows(0, self.height)
            yield ArrayPicture(array)

    def write_mask(self, path: Path, mask: np.ndarray) -> None:
        """Write a mask, SxHxW uint8, as NIfTI on the grid of this volume, which is a NIfTI file."""
        import nibabel
        from nibabel.orientations import apply_orientation, axcodes2ornt, io_orientation, ornt_transform

        source: Any = nibabel.load(self.path)  # type: ignore[attr-defined]
        as_stored = ornt_transform(axcodes2ornt("RAS"), io_orientation(source.affine))
        array = apply_orientation(mask[:, ::-1].transpose(2, 1, 0), as_stored)
        header = source.header.copy()  # keeps units and codes of the grid
        header.set_data_dtype(np.uint8)
        content = type(source)(np.ascontiguousarray(array), source.affine, header).to_bytes()
        path.write_bytes(gzip.compress(content, mtime=0) if self.path.suffix.lower() == ".gz" else content)


def _pages(path: Path) -> int:
    """Return the number of pages of one size in a TIFF, 0 of another file."""
    if not path.is_file():  # a pipe may never end
        return 0
    try:
        with path.open("rb") as file:
            if file.read(4) not in TIFF_MARKS or not directories(path):
                return 0
        with tifffile.TiffFile(path) as pages:
            series = pages.series[0]
            stacked = series.axes[0] not in "YXSC" and series.axes[1:] in ("YX", "YXS")  # C: channels, as ImageJ says
            return int(series.shape[0]) if stacked else 1
    except Exception:  # damaged bytes fail in every way there is; the reader of pictures will name them
        return 0


def _slices(image_file: Path, mask_file: Path) -> list[tuple[Path, Path]]:
    """Return the files of each slice's picture and mask, written if they aren't there yet."""
    files = (image_file, mask_file)
    key = hashlib.sha256(f"{VERSION}".encode())
    for path in files:
        key.update(f"{path.absolute()} {file_state(path)}".encode(errors="surrogateescape"))
    with made_folder("slices") as folder:
        own = folder / key.hexdigest()[:32]
        if not own.exists():
            _check_picture(image_file)
            (image, place), (mask, mask_place) = read_volume(image_file), read_volume(mask_file)
            if image.shape[:3] != mask.shape:
                raise UserError(
                    f"{mask_file} has the shape {mask.shape}, its volume {image_file} {image.shape}",
                    accepted="a mask of the volume's shape",
                )
            if not np.allclose(place, mask_place, atol=PLACE):
                raise UserError(
                    f"{mask_file} lies elsewhere than its volume {image_file}: their affine matrices differ",
                    accepted="a mask on the volume's own grid",
                )
            _write(own, {"image": (image_file, image), "mask": (mask_file, mask)})
    images, masks = (sorted(own.glob(f"{kind}_*.tif")) for kind in ("image", "mask"))
    return [*zip(images, masks, strict=True)]


def _write(folder: Path, volumes: Mapping[str, tuple[Path, np.ndarray]]) -> None:
    """Write slices into a new folder, which appears complete or not at all; errors name a slice by its volume's name.

    Args:
        folder: the new folder.
        volumes: of image and mask, the file and its slices.
    """
    partial = Path(tempfile.mkdtemp(prefix=".partial-", dir=folder.parent))
    try:
        for kind, (source, planes) in volumes.items():
            for number, plane in enumerate(planes):
                file = partial / f"{kind}_{source.name.partition('.')[0]}_slice{number:05}.tif"
                colours = "minisblack" if plane.ndim == 2 else "rgb"
                tifffile.imwrite(file, plane, photometric=colours, metadata=None)
        os.rename(partial, folder)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def read_volume(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Return a volume as slices x rows x columns, or x RGB, of whole numbers where all are, and its affine, 4x4."""
    if not path.is_file():
        raise UserError(f"{path} does not exist", accepted="a volume and its mask")
    try:
        if not path.name.lower().endswith(NIFTI):
            if not _pages(path):
                raise UserError(
                    f"{path} doesn't say how it lies in its volume",
                    accepted="NIfTI for both, or TIFFs of pages for both",
                )
            return _stack(path), np.eye(4)
        array, place = _nifti(path)
    except UserError:
        raise
    except Exception as error:  # damaged bytes fail in every way there is
        advice = CODECS if "imagecodecs" in str(error) else "replace it"
        raise UserError(f"{path} can't be read as a volume: {first_line(error)}", advice=advice) from None
    if not np.isfinite(array).all():
        raise UserError(f"{path} has values that are no numbers (nan or infinite)", accepted="numbers")
    if array.dtype not in (np.uint8, np.uint16):
        if (array == np.rint(array)).all() and np.abs(array.astype(float)).max(initial=0) < 2**15:
            array = array.astype(np.int16)
        elif array.dtype.kind == "f" or array.dtype.itemsize > 4:
            array = array.astype(np.float32)
    return array, place


def _stack(path: Path) -> np.ndarray:
    """Return the pages of a TIFF, SxHxW or SxHxWx3, as a page on its own is read; one bit a pixel is 0 or 255.

    Raises:
        UserError: its tags give the values another meaning, which pages on their own have.
    """
    with tifffile.TiffFile(path) as file:
        page = file.series[0].keyframe
        turned = page.tags.get("Orientation")
        if page.photometric == tifffile.PHOTOMETRIC.MINISWHITE:
            raise UserError(f"{path}: its 0 is white", accepted="a stack whose 0 is black", advice="its pages as files")
        if turned is not None and turned.value != 1:
            raise UserError(f"{path}: its pages are turned by a tag", accepted="upright pages", advice="pages as files")
        stack = file.series[0].asarray()
    stack = stack.astype(np.uint8) * 255 if stack.dtype == bool else stack
    return stack if _pages(path) > 1 else stack[None]


def _check_picture(path: Path) -> None:
    """Raise a UserError where the pages of a TIFF are places in a table of colours, as those of masks may be."""
    if not is_nifti(path) and _pages(path):
        with tifffile.TiffFile(path) as file:
            if file.series[0].keyframe.photometric == tifffile.PHOTOMETRIC.PALETTE:
                raise UserError(
                    f"{path}: its values are places in a table of colours",
                    accepted="a stack of grey or RGB pages",
                    advice="its pages as files",
                )


def _nifti(path: Path) -> tuple[np.ndarray, np.ndarray]:
    try:
        import nibabel
    except ImportError:
        raise UserError(f"{path} needs nibabel", advice="pip install 'unetseg[nifti]'") from None
    image = nibabel.as_closest_canonical(nibabel.load(path))  # type: ignore[attr-defined]
    array: np.ndarray = np.asarray(image.dataobj)  # type: ignore[attr-defined]
    array = array.reshape(array.shape[:3]) if array.size == np.prod(array.shape[:3]) else array
    if array.ndim != 3 or array.dtype.kind not in "uif":
        raise UserError(
            f"{path} has {array.ndim} dimensions of {array.dtype}", accepted="a volume of three dimensions of numbers"
        )
    return np.ascontiguousarray(array.transpose(2, 1, 0)[:, ::-1]), np.asarray(image.affine)
