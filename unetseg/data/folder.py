"""A user's own pictures:

images/NAME.jpg (or png, bmp, tif, webp)    masks/NAME.png with the class as the value, or 0/255 for two classes
train.txt, val.txt, test.txt: one NAME a line (optional; without them the pictures are split by seeded ratios)
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from unetseg.data.dataset import Collection, Example, missing_layout
from unetseg.data.pictures import IMAGE_SUFFIXES, INVALID
from unetseg.errors import UserError
from unetseg.names import IGNORE

SPLITS = {"train": "train.txt", "val": "val.txt", "test": "test.txt"}


def load(
    root: Path, *, classes: Sequence[str], ignore_index: int | None, ratios: Sequence[float], split_seed: int
) -> Collection:
    """Return the examples of a folder.

    Args:
        root: holds images/ and masks/.
        classes: names of the mask values 0, 1, ...
        ignore_index: the mask value that is left out, if any.
        ratios: shares of train, validation and test where there are no split files.
        split_seed: of that split.

    Raises:
        UserError: the layout is another, or a split is empty or lists a picture twice.
    """
    missing = missing_layout(root, ("images", "masks"))
    if missing:
        raise UserError(f"data.root={root} lacks {', '.join(missing)}", accepted="a folder with images/ and masks/")
    images = {path.stem: path for path in sorted((root / "images").iterdir()) if path.suffix.lower() in IMAGE_SUFFIXES}
    given = [name for name in SPLITS.values() if (root / name).exists()]
    if given and len(given) < len(SPLITS):
        raise UserError(f"{root} has {', '.join(given)} only", accepted=f"all of {', '.join(SPLITS.values())}, or none")
    names = _listed(root) if given else _drawn(list(images), ratios, split_seed)
    for split, members in names.items():
        if not members:
            raise UserError(f"data.root={root} leaves the {split} split empty ({len(images)} pictures in images/)")
    splits = {
        split: [
            Example(name, images.get(name, root / "images" / name), root / "masks" / f"{name}.png", "")
            for name in members
        ]
        for split, members in names.items()
    }
    return Collection(tuple(classes), value_table(len(classes), ignore_index), splits)


def value_table(classes: int, ignore_index: int | None) -> np.ndarray:
    """Return the class of each mask value, 256 uint8; with two classes 255 is read as 1 unless it is ignored."""
    values = np.full(256, INVALID, dtype=np.uint8)
    values[:classes] = np.arange(classes)
    if classes == 2:
        values[255] = 1
    if ignore_index is not None:
        values[ignore_index] = IGNORE
    return values


def _listed(root: Path) -> dict[str, list[str]]:
    """Read the split files; a picture may be listed once only."""
    names: dict[str, list[str]] = {}
    seen: dict[str, str] = {}
    for split, file in SPLITS.items():
        lines = [line.strip() for line in (root / file).read_text().splitlines()]
        names[split] = [
            Path(line).stem if Path(line).suffix.lower() in IMAGE_SUFFIXES else line for line in lines if line
        ]
        for name in names[split]:
            if name in seen:
                raise UserError(f"{name} stands in {seen[name]} and in {file}", accepted="each picture once")
            seen[name] = file
    return names


def _drawn(names: list[str], ratios: Sequence[float], seed: int) -> dict[str, list[str]]:
    """Split the names by the ratios, the same for the same seed."""
    order = np.random.default_rng(seed).permutation(len(names))
    first = round(len(names) * ratios[0])
    second = first + round(len(names) * ratios[1])
    parts = {"train": order[:first], "val": order[first:second], "test": order[second:]}
    return {split: sorted(names[i] for i in part) for split, part in parts.items()}
