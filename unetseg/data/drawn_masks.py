"""Masks that are no pictures: polygons in JSON (COCO, LabelMe), and one file an object.

They are drawn once, as PNGs with the class as the value, into the folder of the caches, and read from there like any
mask. Where objects overlap the smaller one lies on top, as an object in front of another is the one to be seen.

Legend: H x W pixels.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from rich.progress import track

from unetseg.data.cache import cache_folder, is_private, locked
from unetseg.data.masks import MaskValues, read_raw_mask
from unetseg.data.pictures import MOST, decoding_errors
from unetseg.errors import UserError
from unetseg.files import drafted

VERSION = 1
"""Of how masks are drawn."""
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
    folder = cache_folder("disk") / "masks"
    files: dict[str, Path] = {}
    states: dict[Path, str] = {}
    for mask in masks:
        key = hashlib.sha256(f"{VERSION} {mask.name} {mask.options}".encode(errors="surrogateescape"))
        for path in mask.sources:
            if path not in states:
                status = path.stat()
                states[path] = f"{path.absolute()} {status.st_size} {status.st_ctime_ns}"
            key.update(states[path].encode(errors="surrogateescape"))
        files[mask.name] = folder / f"{key.hexdigest()[:32]}.png"

    def write(mask: Drawn) -> None:
        _, png = cv2.imencode(".png", mask.draw())
        with drafted(files[mask.name]) as draft:
            draft.write_bytes(png.tobytes())

    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not is_private(folder, 0o022):
            raise UserError(f"{folder} is open to others, or theirs", advice="XDG_CACHE_HOME=FOLDER in the environment")
        with locked(folder), ThreadPoolExecutor() as pool:
            absent = [mask for mask in masks if not files[mask.name].exists()]
            for _ in track(pool.map(write, absent), "drawing the masks", total=len(absent), transient=True):
                pass
    except OSError as error:
        raise UserError(
            f"masks can't be drawn into {folder}: {error.strerror}", advice="XDG_CACHE_HOME=FOLDER in the environment"
        ) from None
    return files


def of_objects(name: str, files: Sequence[Path], values: MaskValues) -> Drawn:
    """Return the mask of pictures of one object each: 1 where any of them isn't 0 (by `values`, its foreground)."""

    def draw() -> np.ndarray:
        masks = [values.table[read_raw_mask(path, values).values] for path in files]
        shapes = {mask.shape for mask in masks}
        if len(shapes) > 1:
            raise UserError(f"the objects of {name} differ in size: {shapes}", accepted="masks of the picture's size")
        return np.maximum.reduce(masks)

    return Drawn(name, tuple(files), draw, f"{values.reading}{values.table.tobytes().hex()}")


def of_labelme(name: str, file: Path, classes: Sequence[str]) -> Drawn:
    """Return the mask of a JSON file of LabelMe; its shapes' labels are names of classes."""

    def draw() -> np.ndarray:
        with decoding_errors(file):
            content = json.loads(file.read_bytes())
            size = _size(content["imageHeight"], content["imageWidth"])
            shapes = content["shapes"]
            return _painted(
                [(_class_of(s["label"], classes, file), _filled([_outline(s)], *size)) for s in shapes], *size
            )

    return Drawn(name, (file,), draw, str(list(classes)))


def of_coco(file: Path, images: Mapping[str, str], classes: Sequence[str]) -> list[Drawn]:
    """Return the masks of those pictures that a COCO file describes.

    Args:
        file: the JSON.
        images: the paths of the pictures by name, relative to the data set's folder.
        classes: names of the classes; those of the categories are among them.

    Raises:
        UserError: the file is no COCO JSON, a category is no class, or a `file_name` is that of two pictures.
    """
    with decoding_errors(file):
        content = json.loads(file.read_bytes())
        entries = {entry["file_name"]: entry for entry in content["images"]}
        labels = {entry["id"]: entry["name"] for entry in content["categories"]}
        objects: dict[Any, list[Any]] = {}
        for annotation in content["annotations"]:
            objects.setdefault(annotation["image_id"], []).append(annotation)
        used = sorted({labels[annotation["category_id"]] for own in objects.values() for annotation in own})
    numbers = {label: _class_of(label, classes, file) for label in used}

    def drawn(name: str, entry: Mapping[str, Any]) -> Drawn:
        def draw() -> np.ndarray:
            with decoding_errors(file):
                size = _size(entry["height"], entry["width"])
                own = objects.get(entry["id"], [])
                return _painted(
                    [(numbers[labels[o["category_id"]]], _coco_object(o["segmentation"], *size)) for o in own], *size
                )

        return Drawn(name, (file,), draw, str(list(classes)))

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
    return masks


def _class_of(label: object, classes: Sequence[str], file: Path) -> int:
    if label not in classes:
        raise UserError(
            f"{file} has objects of the class {label!r}",
            accepted=f"the classes {', '.join(classes)}",
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
        raise UserError(f"a shape is a {kind}", accepted="polygon, rectangle, circle")
    return points


def _coco_object(segmentation: Any, height: int, width: int) -> np.ndarray:
    """Return the pixels of a COCO object, HxW bool: of polygons [x0, y0, x1, ...], or of a run-length code."""
    if isinstance(segmentation, list):
        return _filled([np.array(points, float).reshape(-1, 2) for points in segmentation], height, width)
    counts = segmentation["counts"]
    if isinstance(counts, str):
        try:
            from pycocotools import mask
        except ImportError:
            raise UserError("a run-length code is compressed", advice="pip install pycocotools") from None
        return mask.decode(segmentation).astype(bool)
    pixels = np.repeat(np.arange(len(counts)) % 2 == 1, counts)
    return pixels.reshape(width, height).T  # raises where it isn't H x W pixels


def _filled(outlines: Sequence[np.ndarray], height: int, width: int) -> np.ndarray:
    """Return the pixels, HxW bool, of which most of the area lies within one of the outlines, each Nx2 (x, y).

    Coordinates are those of COCO and LabelMe: the first pixel reaches from 0 to 1.
    """
    filled = np.zeros((height, width), bool)
    for outline in outlines:
        if not np.isfinite(outline).all():
            raise ValueError("a coordinate is no number")
        if len(outline) < 3:
            continue
        left, top = np.floor(outline.min(0)).clip(0).astype(int)
        right, bottom = np.minimum(np.ceil(outline.max(0)), (width, height)).astype(int)
        if right <= left or bottom <= top:
            continue
        fine = np.zeros(((bottom - top) * FINER, (right - left) * FINER), np.uint8)
        # OpenCV's coordinates are those of pixel centres, in units of 1/256
        points = np.rint(((outline - (left, top)) * FINER - 0.5).clip(-(2**20), 2**20) * 256).astype(np.int32)
        cv2.fillPoly(fine, [points], 2, shift=8)
        cv2.polylines(fine, [points], True, 1, shift=8)  # half of what the outline touches is inside
        twice = fine.reshape(bottom - top, FINER, right - left, FINER).sum((1, 3), dtype=np.int32)
        filled[top:bottom, left:right] |= twice > FINER**2
    return filled


def _painted(objects: Sequence[tuple[int, np.ndarray]], height: int, width: int) -> np.ndarray:
    """Return a mask, HxW uint8, with the class of each object, HxW bool; smaller ones lie on top."""
    mask = np.zeros((height, width), np.uint8)
    for label, pixels in sorted(objects, key=lambda entry: -entry[1].sum()):
        mask[pixels] = label
    return mask
