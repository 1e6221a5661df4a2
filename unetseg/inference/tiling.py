"""Probabilities of a whole picture, in bands of rows from the top, so that only a band is in memory.

Two ways: the picture is squashed to the square that the model was trained on and the answer is enlarged again; or the
model works at the picture's own resolution, in overlapping tiles whose answers are blended.

Legend: B tiles, C classes, H x W pixels of the picture, S side of the square, h rows of a band.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import cv2
import numpy as np

from unetseg.data.pictures import Picture

GRID = 32
"""Stride of the encoder's last stage. Tiles start at multiples of it, so that all see one and the same grid."""
BAND = 512
"""Rows of a band of an enlarged answer."""

Predict = Callable[[np.ndarray], np.ndarray]
"""Maps BxHxWx3 uint8 to BxCxHxW float32."""


def enlarged(square: np.ndarray, height: int, width: int) -> Iterator[np.ndarray]:
    """Resize CxSxS float32 bilinearly to the picture's size; yield bands, hxWxC."""
    size = square.shape[1]
    for start in range(0, height, BAND):
        rows = np.arange(start, min(start + BAND, height))
        at = np.clip((rows + 0.5) * size / height - 0.5, 0, size - 1)
        above = at.astype(int)
        below = np.minimum(above + 1, size - 1)
        share = (at - above).astype(np.float32)[:, None]
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
        overlap: pixels, at most tile / 2, over which a tile's weight falls to its border.
        batch_size: tiles at once.
    """
    tops, lefts = starts(picture.height, tile, overlap), starts(picture.width, tile, overlap)
    height, width = min(tile, _on_grid(picture.height)), min(tile, _on_grid(picture.width))
    weights_down, weights_across = weights(tops, height, overlap), weights(lefts, width, overlap)
    total = np.zeros(0, np.float32)
    for number, top in enumerate(tops):
        seen = picture.rows(top, min(top + height, picture.height))
        filling = ((0, height - len(seen)), (0, _on_grid(picture.width) - picture.width), (0, 0))
        strip = np.pad(seen, filling, mode="reflect")
        for first in range(0, len(lefts), batch_size):
            chosen = lefts[first : first + batch_size]
            answers = predict(np.stack([strip[:, left : left + width] for left in chosen]))
            if not total.size:
                total = np.zeros((answers.shape[1], height, strip.shape[1]), np.float32)
            for left, answer, weight in zip(chosen, answers, weights_across[first:], strict=False):
                total[:, :, left : left + width] += answer * weights_down[number, :, None] * weight
        last = number == len(tops) - 1
        done = picture.height - top if last else tops[number + 1] - top
        yield np.ascontiguousarray(total[:, :done, : picture.width].transpose(1, 2, 0))
        if not last:
            total[:, : height - done] = total[:, done:].copy()
            total[:, height - done :] = 0


def starts(length: int, tile: int, overlap: int) -> list[int]:
    """Return where tiles start, in steps on the GRID; the last one ends where the filled-up picture does."""
    last = max(0, _on_grid(length) - tile)
    step = max(GRID, (tile - overlap) // GRID * GRID)
    return [*range(0, last, step), last]


def weights(at: list[int], side: int, overlap: int) -> np.ndarray:
    """Return the weights of the tiles' rows (or columns), len(at) x side, that sum to 1 at every place.

    A weight falls to the border of its tile over `overlap` pixels, but not at the picture's border. It falls as sin^2
    does: next to the border, where the model knows least of what surrounds a pixel, it is smaller than a straight line.
    """
    inside = np.minimum(1, (np.arange(side) + 0.5) / max(overlap, 0.5))
    rise = (np.sin(np.pi / 2 * inside) ** 2).astype(np.float32)
    ramps = np.ones((len(at), side), np.float32)
    ramps[1:] *= rise
    ramps[:-1] *= rise[::-1]
    total = np.zeros(at[-1] + side, np.float32)
    for start, weight in zip(at, ramps, strict=True):
        total[start : start + side] += weight
    return np.stack([weight / total[start : start + side] for start, weight in zip(at, ramps, strict=True)])


def _on_grid(length: int) -> int:
    return -(-length // GRID) * GRID
