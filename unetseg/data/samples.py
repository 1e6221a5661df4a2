"""Pages of a data set's pictures with their masks on top: as they lie, and as a training augments them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np

from unetseg.data.channels import displayed
from unetseg.data.colours import is_background, legend, overlay
from unetseg.data.dataset import Collection, Examples, SkippedExample
from unetseg.data.legend import LINE, draw_legend, write
from unetseg.data.masks import read_mask
from unetseg.data.pictures import read_image
from unetseg.data.view import View
from unetseg.files import drafted
from unetseg.names import IGNORE, shown

SIDE = 320
"""Longest side of a picture on the page, in pixels."""
COLUMNS = 4
AUGMENTED_SIDE = 200
"""The same on the page of augmented pictures."""
EPOCHS = 5
"""For so many epochs each picture is augmented there."""
GAP = 8
"""Pixels between pictures."""


def sheet(collection: Collection, count: int, view: View, path: Path) -> None:
    """Write a PNG of pictures spread over the splits: each with its mask tinted and outlined, and a legend below.

    Args:
        collection: the data set.
        count: pictures at most.
        view: by which pictures are read and shown.
        path: of the PNG.
    """
    every = [(split, example) for split, examples in collection.splits.items() for example in examples]
    chosen = [every[position] for position in np.linspace(0, len(every) - 1, min(count, len(every))).astype(int)]
    tiles = []
    for split, example in chosen:
        image = displayed(read_image(example.image, view), view)
        mask = read_mask(example.mask, collection.values)
        text = f"{split}: {shown(example.name)[-34:]}"
        tiles.append(_tile(image, mask, SIDE, text, is_background(collection.classes)))
    _write_page(tiles, COLUMNS, collection.classes, path)


def augmented_sheet(examples: Examples, classes: Sequence[str], count: int, path: Path) -> None:
    """Write a PNG of training pictures, a row each: as it is resized, then as the first epochs augment it.

    Args:
        examples: of training.
        classes: names of the classes.
        count: pictures at most, spread over the examples; those that can't be read are left out.
        path: of the PNG.
    """
    view, background = examples.transform.view, is_background(classes)
    tiles: list[np.ndarray] = []
    for position in np.linspace(0, len(examples) - 1, min(count, len(examples))).astype(int).tolist():
        items = [examples.load(epoch, position) for epoch in range(EPOCHS)]
        if isinstance(items[0], SkippedExample):
            continue
        index = items[0][2]
        pairs = [examples.load_resized(index), *(item[:2] for item in items if not isinstance(item, SkippedExample))]
        texts = [shown(examples.examples[index].name)[-24:], *(f"epoch {epoch}" for epoch in range(EPOCHS))]
        tiles += [
            _tile(displayed(image, view), mask, AUGMENTED_SIDE, text, background)
            for (image, mask), text in zip(pairs, texts, strict=True)
        ]
    _write_page(tiles, 1 + EPOCHS, classes, path)


def _tile(image: np.ndarray, mask: np.ndarray, side: int, text: str, background: bool) -> np.ndarray:
    """Return a picture with its mask on it, its longer side of `side` pixels, above a text."""
    scale = side / max(mask.shape)
    size = (max(1, round(mask.shape[1] * scale)), max(1, round(mask.shape[0] * scale)))
    small = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
    classes = cv2.resize(mask, size, interpolation=cv2.INTER_NEAREST_EXACT)
    tile = np.full((side + LINE, side + GAP, 3), 255, np.uint8)
    tile[: size[1], GAP : GAP + size[0]] = _tinted(small, classes, background)
    return write(tile, text, GAP, size[1] + LINE - 7)


def _write_page(tiles: Sequence[np.ndarray], columns: int, classes: Sequence[str], path: Path) -> None:
    """Write tiles of one size in rows, with the legend below."""
    blank = np.full_like(tiles[0], 255)
    rows = [[*tiles[start : start + columns]] for start in range(0, len(tiles), columns)]
    page = np.vstack([np.hstack(row + [blank] * (columns - len(row))) for row in rows])
    entries = [*legend(classes), ("ignored", (255, 255, 255))]
    below = draw_legend(entries, page.shape[1])
    page = np.vstack([np.pad(page, ((0, 0), (0, below.shape[1] - page.shape[1]), (0, 0)), constant_values=255), below])
    with drafted(path) as draft:
        draft.write_bytes(cv2.imencode(".png", page[..., ::-1])[1].tobytes())


def _tinted(image: np.ndarray, mask: np.ndarray, background: bool) -> np.ndarray:
    """Return a picture with each class but a background in its colour; ignored pixels are pale."""
    pale = (0.55 * image + 0.45 * 255).astype(np.uint8)
    return overlay(np.where((mask == IGNORE)[..., None], pale, image), mask, background=background)
