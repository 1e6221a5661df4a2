"""Probabilities of a whole picture, in bands of rows from the top, so that only one band is in memory.

There are two ways: the picture is fitted into the square of training and the answer is enlarged again; or the model
works at the picture's own resolution, or at the view's scale of it, in overlapping tiles whose answers are blended.

Legend: B tiles, C classes, H x W pixels of the picture, S side of the square, h rows of a band, D channels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import cv2
import numpy as np

from unetseg.data.pictures import ArrayPicture, Picture
from unetseg.data.transforms import resize_image
from unetseg.data.view import View

GRID = 32
"""Stride of the encoder's last stage. Tiles start at multiples of it, so that all tiles share one grid."""
BAND = 512
"""Rows of a band."""
OVERLAP = 64
"""Pixels over which tiles are blended unless the user says otherwise, at most half a tile."""

Predict = Callable[[np.ndarray], np.ndarray]
"""Maps BxHxWxD to BxCxHxW float32."""


def from_square(square: np.ndarray, view: View, height: int, width: int) -> Iterator[np.ndarray]:
    """Take what a square, CxSxS float32, says of a picture of height x width; yield bands, hxWxC."""
    inner_height, inner_width = view.resized(height, width)
    top, left = (view.size - inner_height) // 2, (view.size - inner_width) // 2
    return enlarge(square[:, top : top + inner_height, left : left + inner_width], height, width)


def predict_scaled(picture: Picture, predict: Predict, view: View, **tiles: int) -> Iterator[np.ndarray]:
    """Predict a picture in tiles at a view's scale of it; yield bands at its own size. Arguments as `predict_tiles`.

    At a scale other than 1 the whole picture is in memory.
    """
    own = picture.height, picture.width
    height, width = own if view.crop is None else view.resized(*own)
    if (height, width) == own:
        return predict_tiles(picture, predict, **tiles)
    scaled = ArrayPicture(resize_image(picture.rows(0, picture.height), height, width))
    return enlarge_bands(predict_tiles(scaled, predict, **tiles), *own)


def enlarge_bands(bands: Iterator[np.ndarray], height: int, width: int) -> Iterator[np.ndarray]:
    """Resize the bands, hxWxC, of a smaller or larger picture to height x width; yield bands of it."""
    return enlarge(np.concatenate(list(bands)).transpose(2, 0, 1), height, width)


def enlarge(square: np.ndarray, height: int, width: int) -> Iterator[np.ndarray]:
    """Resize CxS1xS2 float32 bilinearly to the picture's size; yield bands, hxWxC."""
    size = square.shape[1]
    for start in range(0, height, BAND):
        rows = np.arange(start, min(start + BAND, height))
        source_rows = np.clip((rows + 0.5) * size / height - 0.5, 0, size - 1)
        above = source_rows.astype(int)
        below = np.minimum(above + 1, size - 1)
        share = (source_rows - above).astype(np.float32)[:, None]
        planes = (1 - share) * square[:, above] + share * square[:, below]
        wide = [cv2.resize(plane, (width, len(rows)), interpolation=cv2.INTER_LINEAR) for plane in planes]
        yield np.stack(wide, axis=-1)


def predict_tiles(
    picture: Picture, predict: Predict, *, tile: int, overlap: int, batch_size: int
) -> Iterator[np.ndarray]:
    """Predict overlapping tiles at the picture's own resolution and blend them; yield bands, hxWxC.

    A picture that isn't larger than a tile is one tile. Each side is filled up to a multiple of GRID by reflection.

    Args:
        picture: the picture.
        predict: the model.
        tile: side of the tiles, a multiple of GRID.
        overlap: pixels, at most tile / 2, over which a tile's weight falls towards its border.
        batch_size: tiles that the model gets at once.
    """
    tops, lefts = tile_starts(picture.height, tile, overlap), tile_starts(picture.width, tile, overlap)
    height, width = min(tile, _on_grid(picture.height)), min(tile, _on_grid(picture.width))
    weights_down, weights_across = tile_weights(tops, height, overlap), tile_weights(lefts, width, overlap)
    total = np.zeros(0, np.float32)
    for number, top in enumerate(tops):
        rows = picture.rows(top, min(top + height, picture.height))
        padding = ((0, height - len(rows)), (0, _on_grid(picture.width) - picture.width), (0, 0))
        strip = np.pad(rows, padding, mode="reflect")
        for first in range(0, len(lefts), batch_size):
            batch_lefts = lefts[first : first + batch_size]
            answers = predict(np.stack([strip[:, left : left + width] for left in batch_lefts]))
            if not total.size:
                total = np.zeros((answers.shape[1], height, strip.shape[1]), np.float32)
            for left, answer, weight in zip(batch_lefts, answers, weights_across[first:], strict=False):
                total[:, :, left : left + width] += answer * weights_down[number, :, None] * weight
        last = number == len(tops) - 1
        complete = picture.height - top if last else tops[number + 1] - top  # rows that no later tile covers
        yield np.ascontiguousarray(total[:, :complete, : picture.width].transpose(1, 2, 0))
        if not last:
            total[:, : height - complete] = total[:, complete:].copy()
            total[:, height - complete :] = 0


def tile_starts(length: int, tile: int, overlap: int) -> list[int]:
    """Return the starts of the tiles along a side, multiples of GRID; the last tile ends with the padded picture."""
    last = max(0, _on_grid(length) - tile)
    step = max(GRID, (tile - overlap) // GRID * GRID)
    return [*range(0, last, step), last]


def tile_weights(starts: list[int], side: int, overlap: int) -> np.ndarray:
    """Return the weights of the tiles' rows (or columns), len(starts) x side, which sum to 1 in each row of a picture.

    A weight falls towards the border of its tile over `overlap` pixels, but not at the picture's border. It falls as
    sin^2: next to the border, where the model sees least of a pixel's surroundings, it is smaller than a straight line.
    """
    inside = np.minimum(1, (np.arange(side) + 0.5) / max(overlap, 0.5))
    rise = (np.sin(np.pi / 2 * inside) ** 2).astype(np.float32)
    ramps = np.ones((len(starts), side), np.float32)
    ramps[1:] *= rise
    ramps[:-1] *= rise[::-1]
    total = np.zeros(starts[-1] + side, np.float32)
    for start, ramp in zip(starts, ramps, strict=True):
        total[start : start + side] += ramp
    return np.stack([ramp / total[start : start + side] for start, ramp in zip(starts, ramps, strict=True)])


def _on_grid(length: int) -> int:
    return -(-length // GRID) * GRID


def argmax(probabilities: np.ndarray) -> np.ndarray:
    """Map hxWxC to the most probable classes, hxW uint8: the same as numpy's argmax, in a fifth of its time."""
    best, classes = probabilities[..., 0], np.zeros(probabilities.shape[:2], np.uint8)
    for number in range(1, probabilities.shape[2]):
        plane = probabilities[..., number]
        classes[plane > best] = number
        best = np.maximum(best, plane)
    return classes
