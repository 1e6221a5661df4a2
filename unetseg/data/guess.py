"""A first guess at how a data set lies in its folder: patterns and mask values for a data.yaml.

Nothing here is used in training. A guess is written down, where its owner reads and mends it.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from unetseg.data.layout import SPLIT_WORDS, files_below
from unetseg.data.masks import MANY, MASK_SUFFIXES, stored_values
from unetseg.data.pictures import IMAGE_SUFFIXES, decoding_errors
from unetseg.errors import UserError
from unetseg.names import IGNORED

MASK_WORDS = re.compile(r"mask|label|annot|truth|(^|[/_])gt|seg|manual|1stho|matte|trimap", re.IGNORECASE)
"""What the paths of masks have in them, and hardly those of pictures."""
LOOKED_AT = 24
"""Masks whose values are read."""
SIMILAR = 0.6
"""The share of the masks that have a picture, so that two kinds of files are taken for pictures and masks."""
DEFAULT = {"images": "images/{name}.*", "masks": "masks/{name}.*"}
"""What needs no statement."""
LARGEST_JSON = 2**28
"""Bytes of a JSON file that is looked into."""
MOST_CLASSES = 64
"""More values than these are no classes."""
BRIGHT = 200
"""Of grey masks of one class: a quarter of what isn't 0 is brighter at least, or they are numbers of objects."""


@dataclass(frozen=True)
class Family:
    """Files of one place and one manner of names."""

    pattern: str
    names: Mapping[str, list[str]]
    """The files by their {name}."""


def guess(root: Path) -> dict[str, Any]:
    """Return the content of a data.yaml for a folder; empty where it lies as data=folder expects.

    Raises:
        UserError: no pictures with masks are recognised.
    """
    files = files_below(root)
    described = _by_json(root, files)
    if described:
        return described
    families = _families([file for file in files if file.lower().endswith(MASK_SUFFIXES)])
    pairs = [
        (len(images.names.keys() & masks.names.keys()), images, masks)
        for images in families
        for masks in families
        if images is not masks and _is_pair(root, images, masks)
    ]
    if not pairs:
        endings = Counter(PurePosixPath(file).suffix for file in files)
        found = ", ".join(f"{count} {ending or 'without an ending'}" for ending, count in endings.most_common(5))
        raise UserError(
            f"in {root} no pictures with masks are recognised (files: {found or 'none'})",
            accepted=f"pictures and masks that end in {', '.join(MASK_SUFFIXES)}, whose names have a part in common",
            advice=(
                "files of other formats (.mat, .dcm, .h5) as PNG, TIFF, NPY or NIfTI",
                "a data.yaml of your own: images: PATTERN, masks: PATTERN with {name} for the common part; NIfTI and "
                "pictures of a file a channel, {name}_{channel}.tif, always need one",
            ),
        )
    _, images, masks = max(pairs, key=lambda pair: pair[0])
    plain = [re.sub(r"\.\w+$", ".*", own.pattern) for own in (images, masks)] == [*DEFAULT.values()]
    stated: dict[str, Any] = {} if plain else {"images": images.pattern, "masks": masks.pattern}
    if any(len(paths) > len(images.names[name]) for name, paths in masks.names.items() if name in images.names):
        return stated | {"instances": True}
    return stated | _meaning([root / paths[0] for paths in masks.names.values()])


def _by_json(root: Path, files: Sequence[str]) -> dict[str, Any]:
    """Return the content for COCO's or LabelMe's JSON, empty where there is none."""
    jsons = [file for file in files if file.endswith(".json") and (root / file).stat().st_size < LARGEST_JSON]
    pictures = _largest([file for file in files if file.lower().endswith(IMAGE_SUFFIXES)])
    for file in jsons[:20] if pictures else []:
        with suppress(
            ValueError, OSError, KeyError, TypeError, AttributeError, RecursionError
        ):  # anything may be in it
            content = json.loads((root / file).read_bytes())
            if {"images", "annotations", "categories"} <= content.keys():
                labels = dict.fromkeys(str(category["name"]) for category in content["categories"])
                masks = "/".join(_split_in(part) for part in file.split("/"))
                return {"images": pictures, "masks": masks, "classes": ["background", *labels]}
            if {"shapes", "imageHeight"} <= content.keys():
                every = [json.loads((root / own).read_bytes()) for own in jsons]
                named = sorted({str(shape["label"]) for one in every for shape in one.get("shapes", [])})
                return {"images": pictures, "masks": _largest(jsons), "classes": ["background", *named]}
    return {}


def _largest(files: Sequence[str]) -> str:
    """Return the pattern of the largest family; empty where there are no files."""
    families = _families(files)
    return max(families, key=lambda family: len(family.names)).pattern if families else ""


def _families(files: Sequence[str]) -> list[Family]:
    """Group files by folder and ending, and the names of a folder by what they end with."""
    own_folders = _folders_of_one_picture(files)
    places: dict[tuple[str, str], list[PurePosixPath]] = {}
    known: dict[str, set[str]] = {}
    for path in map(PurePosixPath, files):
        own = own_folders.get(_shape(path))
        parts = ["{name}" if depth == own else _split_in(part) for depth, part in enumerate(path.parts[:-1])]
        folder = "".join(f"{part}/" for part in parts)
        places.setdefault((folder, path.suffix), []).append(path)
        known.setdefault(folder, set()).add(path.stem)
    families = []
    for (folder, ending), members in places.items():
        if "{name}" in folder:
            depth = folder.split("/").index("{name}")
            names: dict[str, list[str]] = {}
            for path in members:
                names.setdefault(path.parts[depth], []).append(str(path))
            families.append(Family(f"{folder}*{ending}", names))
            continue
        of_stem: dict[str, list[str]] = {}
        for path in members:
            of_stem.setdefault(_split_in(path.stem) if "{split}" in folder else path.stem, []).append(str(path))
        for after, stems in _by_endings([*of_stem], known[folder]).items():
            own_names = {stem[: len(stem) - len(after)]: of_stem[stem] for stem in stems}
            families.append(Family(f"{folder}{{name}}{after}{ending}", own_names))
    return _joined(families)


def _joined(families: Sequence[Family]) -> list[Family]:
    """Return families, those joined that differ in their endings alone and have no name in common."""
    by_base: dict[str, list[Family]] = {}
    for family in families:
        by_base.setdefault(family.pattern.removesuffix(PurePosixPath(family.pattern).suffix), []).append(family)
    joined = []
    for base, alike in by_base.items():
        names = {name: files for family in alike for name, files in family.names.items()}
        apart = len(names) == sum(len(family.names) for family in alike)
        joined += [Family(f"{base}.*", names)] if len(alike) > 1 and apart else alike
    return joined


def _shape(path: PurePosixPath) -> tuple[int, str]:
    return len(path.parts), path.parts[0] if len(path.parts) > 2 else ""


def _folders_of_one_picture(files: Sequence[str]) -> dict[tuple[int, str], int]:
    """Return at which depth each picture has a folder of its own, by the shape of paths: set/ID/images/x.png."""
    shapes: dict[tuple[int, str], list[PurePosixPath]] = {}
    for path in map(PurePosixPath, files):
        shapes.setdefault(_shape(path), []).append(path)
    found: dict[tuple[int, str], int] = {}
    for shape, paths in shapes.items():
        for depth in range(1, shape[0] - 2):
            folders, inside = ({path.parts[depth + step] for path in paths} for step in (0, 1))
            if len(folders) > 3 and len(inside) < len(folders) / 2:
                found.setdefault(shape, depth)
    return found


def _by_endings(stems: Sequence[str], known: set[str]) -> dict[str, list[str]]:
    """Group the names of a folder by what stands behind the name of a picture.

    A name and the same name with something behind it are a picture and its mask. What all names of a group have in
    common at their ends, from a `_`, `-` or `.` on, is no part of a name.

    Args:
        stems: names of files of one ending.
        known: names of all files of the folder.
    """
    behind: dict[str, list[str]] = {}
    for stem in stems:
        shorter = next((stem[:cut] for cut in range(1, len(stem)) if stem[cut] in "_-. " and stem[:cut] in known), stem)
        behind.setdefault(stem[len(shorter) :], []).append(stem)
    grouped: dict[str, list[str]] = {}
    for suffix, members in behind.items():
        shared = _common_end([stem[: len(stem) - len(suffix)] for stem in members]) if len(members) > 1 else ""
        end = re.search(r"[_\-. ].*$", shared)
        grouped.setdefault((end[0] if end else "") + suffix, []).extend(members)
    return grouped


def _common_end(texts: Sequence[str]) -> str:
    """Return the longest ending that all texts have and that is none of them."""
    first = min(texts, key=len)
    length = next((n for n in range(len(first) - 1, 0, -1) if all(text.endswith(first[-n:]) for text in texts)), 0)
    return first[len(first) - length :]


def _split_in(part: str) -> str:
    """Return a name with {split} in place of the word for a split: trainannot becomes {split}annot."""
    words = "|".join(sorted(SPLIT_WORDS, key=len, reverse=True))
    return re.sub(
        rf"(?i)^({words})(?=$|[_\-. \d]|annot|label|mask)|(?<=[_\-. ])({words})(?=$|[_\-. \d])", "{split}", part
    )


def _is_pair(root: Path, images: Family, masks: Family) -> bool:
    """Return whether two families are the pictures and the masks of a data set."""
    both = images.names.keys() & masks.names.keys()
    more_splits = "{split}" in masks.pattern and "{split}" not in images.pattern
    if not both or len(both) < SIMILAR * len(masks.names) or more_splits:
        return False
    words = [bool(MASK_WORDS.search(family.pattern)) for family in (images, masks)]
    if words[0] != words[1]:
        return words[1]
    colours = [_colours(root / next(iter(family.names.values()))[0]) for family in (images, masks)]
    return colours[1] < colours[0]


def _colours(path: Path) -> int:
    """Return how many values or colours a file has; 0 where it can't be read."""
    with suppress(UserError), decoding_errors(path):
        array, _ = stored_values(path)
        return len(np.unique(array.reshape(-1, *array.shape[2:]), axis=0))
    return 0


def _meaning(masks: Sequence[Path]) -> dict[str, Any]:
    """Return what the values of some of these masks seem to mean; empty where they are 0 and 1, or 0 and 255."""
    counts: Counter[tuple[int, ...]] = Counter()
    grey_colours = palettes = False
    for path in masks[:: max(1, len(masks) // LOOKED_AT)][:LOOKED_AT]:
        with suppress(UserError), decoding_errors(path):
            array, palette = stored_values(path)
            palettes |= bool(palette)
            if array.ndim == 3 and (array == array[..., :1]).all():
                array, grey_colours = array[..., 0], True
            found, numbers = np.unique(array.reshape(-1, *array.shape[2:]), axis=0, return_counts=True)
            for value, number in zip(found.tolist(), numbers.tolist(), strict=True):
                counts[tuple(value) if isinstance(value, list) else (value,)] += number
    stored = sorted(counts)
    if any(len(value) > 1 for value in stored):
        colours = [f"#{bytes(colour).hex()}" for colour in stored if len(colour) == 3]
        return {"values": {f"class{n}": c for n, c in enumerate(colours)}} if len(colours) <= MOST_CLASSES else {}
    values = [value for (value,) in stored]
    drawn = sum(number for (value,), number in counts.items() if value)
    bright = sum(number for (value,), number in counts.items() if BRIGHT <= value <= 255)
    if any(value != int(value) for value in values):
        return {"threshold": (min(values) + max(values)) / 2}
    if bright > drawn / 4 and (grey_colours or len(values) > MANY) and not palettes:
        return {"threshold": 127}
    if grey_colours:
        return {"values": {f"class{value}": f"#{value:02x}{value:02x}{value:02x}" for value in values}}
    if set(values) <= {0, 1} or set(values) <= {0, 255}:
        return {}
    if values == list(range(len(values))) and (palettes or len(values) <= 2 * MANY):
        return {"classes": [f"class{value}" for value in values]}
    if 0 in values and len(values) > MANY and not palettes and 255 not in values:
        return {"threshold": 0}  # objects, each with a number of its own
    binary = {0, 255} <= set(values) and 1 not in values
    left_out = [value for value in values if (value not in (0, 255) if binary else value in (255, -1))]
    named: dict[str, Any] = {f"class{value}": value for value in values if value not in left_out}
    return {"values": named | ({IGNORED: left_out} if left_out else {})}
