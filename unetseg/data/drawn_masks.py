"""Masks that are no pictures: polygons in JSON (COCO, LabelMe), and one file an object.

They are drawn once, as PNGs with the class as the value, into the folder of the caches, and read from there like any
mask. Where objects overlap the smaller one lies on top, as an object in front of another is the one to be seen.

Legend: H x W pixels.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from rich.progress import track

from unetseg.data.cache import cache_folder, made_folder
from unetseg.data.masks import MaskValues, read_mask
from unetseg.data.pictures import MOST
from unetseg.data.store import file_state
from unetseg.errors import UserError, first_line
from unetseg.files import drafted
from unetseg.names import IGNORE

KIND = "masks"
VERSION = 1
"""Of how masks are drawn."""
BAND = 64
"""Rows of a picture that are drawn at a time."""
FINER = 8
"""A polygon is drawn in pixels that are FINER times smaller; a pixel belongs to it if most of its area does."""


@dataclass(frozen=True)
class Drawn:
    """A mask to draw."""

    name: str
    sources: tuple[Path, ...]
    """The files that it is made of; where one changes it is drawn again."""
    draw: Callable[[], np.ndarray]
    """Returns it, HxW uint8."""
    options: str = ""
    """What else it depends on."""


def draw_all(masks: Sequence[Drawn]) -> dict[str, Path]:
    """Draw the masks that aren't drawn yet; return the file of each by its name.

    Raises:
        UserError: a source can't be read, or the folder of the caches can't be written.
    """
    files: dict[str, Path] = {}
    states = {path: file_state(path) for path in {path for mask in masks for path in mask.sources}}
    for mask in masks:
        key = hashlib.sha256(f"{VERSION} {mask.name} {mask.options}".encode(errors="surrogateescape"))
        for path in mask.sources:
            key.update(f"{path.absolute()} {states[path]}".encode(errors="surrogateescape"))
        files[mask.name] = cache_folder("disk") / KIND / f"{key.hexdigest()[:32]}.png"

    def write(mask: Drawn) -> None:
        _, png = cv2.imencode(".png", mask.draw())
        with drafted(files[mask.name]) as draft:
            draft.write_bytes(png.tobytes())

    with made_folder(KIND), ThreadPoolExecutor() as pool:
        absent = [mask for mask in masks if not files[mask.name].exists()]
        for _ in track(pool.map(write, absent), "drawing the masks", total=len(absent), transient=True):
            pass
    return files


def of_objects(name: str, files: Sequence[Path], values: MaskValues) -> Drawn:
    """Return the mask of pictures of one object each: 1 where any is 1 by `values`, else IGNORE where any is that."""

    def draw() -> np.ndarray:
        masks = [read_mask(path, values) for path in files]
        shapes = {mask.shape for mask in masks}
        if len(shapes) > 1:
            raise UserError(f"the objects of {name} differ in size: {shapes}", accepted="masks of the picture's size")
        stack = np.stack(masks)
        return np.where((stack == 1).any(0), 1, np.where((stack == IGNORE).any(0), IGNORE, 0)).astype(np.uint8)

    return Drawn(name, tuple(files), draw, f"{values.reading}{values.either}{values.table.tobytes().hex()}")


def of_labelme(name: str, file: Path, classes: Sequence[str]) -> Drawn:
    """Return the mask of a JSON file of LabelMe; its shapes' labels are names of classes."""

    def draw() -> np.ndarray:
        with json_errors(file):
            content = json.loads(file.read_bytes())
            size = _size(content["imageHeight"], content["imageWidth"])
            shapes = content["shapes"]
            return _painted(
                [(_class_of(s["label"], classes, file), _filled([_outline(s)], *size)) for s in shapes], *size
            )

    return Drawn(name, (file,), draw, str(list(classes)))


def of_coco(file: Path, images: Mapping[str, str], classes: Sequence[str]) -> tuple[list[Drawn], int]:
    """Return the masks of those pictures that a COCO file describes, and how many it describes that aren't there.

    Args:
        file: the JSON.
        images: the paths of the pictures by name, relative to the data set's folder.
        classes: names of the classes; those of the categories are among them.

    Raises:
        UserError: the file is no COCO JSON, a category is no class, or a `file_name` is that of two pictures.
    """
    with json_errors(file):
        content = json.loads(file.read_bytes())
        entries = _by_key(content["images"], "file_name", file)
        identities = _by_key(content["images"], "id", file)
        labels = {number: own["name"] for number, own in _by_key(content["categories"], "id", file).items()}
        objects: dict[Any, list[Any]] = {}
        for annotation in content["annotations"]:
            objects.setdefault(annotation["image_id"], []).append(annotation)
        strays = [identity for identity in objects if identity not in identities]
        if strays:
            raise ValueError(f"its annotations are of a picture {strays[0]!r}, which is none of its images")
        used = sorted({labels[annotation["category_id"]] for own in objects.values() for annotation in own})
    numbers = {label: _class_of(label, classes, file) for label in used}

    def drawn(name: str, entry: Mapping[str, Any]) -> Drawn:
        def draw() -> np.ndarray:
            with json_errors(file):
                size = _size(entry["height"], entry["width"])
                own = objects.get(entry["id"], [])
                return _painted(
                    [(numbers[labels[o["category_id"]]], _coco_object(o.get("segmentation"), *size)) for o in own],
                    *size,
                )

        return Drawn(name, (file,), draw, f"{list(classes)} {entry['file_name']}")

    masks: list[Drawn] = []
    owners: dict[str, str] = {}
    for name, path in images.items():
        parts = path.split("/")
        endings = ("/".join(parts[first:]) for first in range(len(parts)))
        ending = next((ending for ending in endings if ending in entries), None)
        if ending is None:
            continue
        if ending in owners:
            raise UserError(
                f"{file} describes {ending}: is it {owners[ending]} or {path}?",
                accepted="file names with their folders",
            )
        owners[ending] = path
        masks.append(drawn(name, entries[ending]))
    return masks, len(entries) - len(owners)


@contextmanager
def json_errors(file: Path) -> Iterator[None]:
    """Turn an error of a stranger's JSON into a UserError that names the file."""
    try:
        yield
    except UserError as error:
        raise (error if str(file) in str(error) else UserError(f"{file}: {error}")) from None
    except OSError:
        raise
    except Exception as error:  # it may hold anything
        reason = f"it lacks {error}" if isinstance(error, KeyError) else first_line(error)
        raise UserError(f"{file} can't be read: {reason}", accepted="JSON of COCO or LabelMe") from None


def _by_key(entries: Any, key: str, file: Path) -> dict[Any, Any]:
    """Return the entries of a COCO file by a key that must tell them apart."""
    found = {entry[key]: entry for entry in entries}
    if len(found) < len(entries):
        raise UserError(f"{file} has several entries of one {key}", accepted=f"a {key} of its own for each")
    return found


def _class_of(label: object, classes: Sequence[str], file: Path) -> int:
    if label not in classes[1:]:
        raise UserError(
            f"{file} has objects of the class {label!r}",
            accepted=f"the classes {', '.join(classes[1:])} ({classes[0]} is what lies in no object)",
            advice=f"'data.classes=[background,{label},...]' with all of its classes after the background",
        )
    return classes.index(str(label))


def _size(height: Any, width: Any) -> tuple[int, int]:
    """Return height and width as they are stated in a JSON file; raise a ValueError where they can't be a picture's."""
    if not all(isinstance(side, int) and side > 0 for side in (height, width)) or height * width > MOST:
        raise ValueError(f"it states a picture of {height} x {width} pixels")
    return height, width


def _outline(shape: Mapping[str, Any]) -> np.ndarray:
    """Return the outline of a LabelMe shape, Nx2."""
    points, kind = np.array(shape["points"], float), shape.get("shape_type", "polygon")
    if kind == "rectangle":
        (x0, y0), (x1, y1) = points
        return np.array([(x0, y0), (x1, y0), (x1, y1), (x0, y1)])
    if kind == "circle":
        angles = np.linspace(0, 2 * np.pi, 256, endpoint=False)
        return points[0] + np.hypot(*(points[1] - points[0])) * np.stack([np.cos(angles), np.sin(angles)], axis=1)
    if kind != "polygon":
        raise ValueError(f"a shape is a {kind}; polygons, rectangles and circles are read")
    return points


Region = tuple[int, int, np.ndarray]
"""Top row, left column, and the pixels from there, hxw bool."""


def _coco_object(segmentation: Any, height: int, width: int) -> Region:
    """Return the pixels of a COCO object: of polygons [x0, y0, x1, ...], or of a run-length code."""
    if isinstance(segmentation, list) and segmentation:
        return _filled([np.array(points, float).reshape(-1, 2) for points in segmentation], height, width)
    if not segmentation:
        raise ValueError("an object has a box alone, and no segmentation")
    counts, size = segmentation["counts"], segmentation["size"]
    if [*size] != [height, width]:
        raise ValueError(f"a run-length code is of size {size}, its picture of {[height, width]}")
    if isinstance(counts, str):
        try:
            from pycocotools import mask
        except ImportError:
            raise UserError("a run-length code is compressed", advice="pip install pycocotools") from None
        return 0, 0, mask.decode(segmentation).astype(bool)
    if sum(counts) != height * width or min(counts) < 0:
        raise ValueError("a run-length code doesn't have the picture's pixels")
    return 0, 0, np.repeat(np.arange(len(counts)) % 2 == 1, counts).reshape(width, height).T


def _filled(outlines: Sequence[np.ndarray], height: int, width: int) -> Region:
    """Return the pixels of which most of the area lies within one of the outlines, each Nx2 (x, y).

    Coordinates are those of COCO and LabelMe: the first pixel reaches from 0 to 1.
    """
    if any(len(outline) < 3 or not np.isfinite(outline).all() for outline in outlines):
        raise ValueError("a polygon has fewer than three corners, or one that is no number")
    corners = np.concatenate(outlines)
    left, top = np.floor(corners.min(0)).clip(0, (width, height)).astype(int)
    right, bottom = np.ceil(corners.max(0)).clip((left, top), (width, height)).astype(int)
    filled = np.zeros((bottom - top, right - left), bool)
    for first in range(top, bottom if right > left else top, BAND):  # so that the finer pixels need little memory
        rows = min(BAND, bottom - first)
        for outline in outlines:
            fine = np.zeros((rows * FINER, (right - left) * FINER), np.uint8)
            # OpenCV's coordinates are those of pixel centres, in units of 1/256
            points = np.rint(((outline - (left, first)) * FINER - 0.5).clip(-(2**20), 2**20) * 256).astype(np.int32)
            cv2.fillPoly(fine, [points], 2, shift=8)
            cv2.polylines(fine, [points], True, 1, shift=8)  # half of what the outline touches is inside
            twice = fine.reshape(rows, FINER, right - left, FINER).sum((1, 3), dtype=np.int32)
            filled[first - top : first - top + rows] |= twice > FINER**2
    return top, left, filled


def _painted(objects: Sequence[tuple[int, Region]], height: int, width: int) -> np.ndarray:
    """Return a mask, HxW uint8, with the class of each object; smaller ones lie on top."""
    mask = np.zeros((height, width), np.uint8)
    for label, (top, left, pixels) in sorted(objects, key=lambda entry: -int(entry[1][2].sum())):
        mask[top : top + pixels.shape[0], left : left + pixels.shape[1]][pixels] = label
    return mask
