"""A page of a data set's pictures with their masks on top."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np

from unetseg.data.channels import displayed
from unetseg.data.colours import is_background, legend, overlay
from unetseg.data.dataset import Collection
from unetseg.data.legend import LINE, draw_legend, write
from unetseg.data.masks import read_mask
from unetseg.data.pictures import read_image
from unetseg.data.view import View
from unetseg.files import drafted
from unetseg.names import IGNORE, shown

SIDE = 320
"""Longest side of a picture on the page, in pixels."""
COLUMNS = 4
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
        scale = SIDE / max(mask.shape)
        size = (max(1, round(mask.shape[1] * scale)), max(1, round(mask.shape[0] * scale)))
        small = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
        classes = cv2.resize(mask, size, interpolation=cv2.INTER_NEAREST_EXACT)
        tile = np.full((SIDE + LINE, SIDE + GAP, 3), 255, np.uint8)
        tile[: size[1], GAP : GAP + size[0]] = _tinted(small, classes, is_background(collection.classes))
        tiles.append(write(tile, f"{split}: {shown(example.name)[-34:]}", GAP, size[1] + LINE - 7))
    blank = np.full_like(tiles[0], 255)
    rows = [tiles[start : start + COLUMNS] for start in range(0, len(tiles), COLUMNS)]
    page = np.vstack([np.hstack(row + [blank] * (COLUMNS - len(row))) for row in rows])
    entries = [*legend(collection.classes), ("ignored", (255, 255, 255))]
    below = draw_legend(entries, page.shape[1])
    page = np.vstack([np.pad(page, ((0, 0), (0, below.shape[1] - page.shape[1]), (0, 0)), constant_values=255), below])
    with drafted(path) as draft:
        draft.write_bytes(cv2.imencode(".png", page[..., ::-1])[1].tobytes())


def _tinted(image: np.ndarray, mask: np.ndarray, background: bool) -> np.ndarray:
    """Return a picture with each class but a background in its colour; ignored pixels are pale."""
    pale = (0.55 * image + 0.45 * 255).astype(np.uint8)
    return overlay(np.where((mask == IGNORE)[..., None], pale, image), mask, background=background)
