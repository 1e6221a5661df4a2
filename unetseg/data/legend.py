"""Names beside their colours, drawn as a picture, and the letters for it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from unetseg.names import shown

STEM = "legend"
"""Of the file that names the colours beside overlays, which no picture may have."""
LINE = 22
"""Height of a line of text, in pixels."""
MARGIN = 4
INK = (40, 40, 40)


def draw_legend(entries: Sequence[tuple[str, tuple[int, int, int]]], width: int = 0) -> np.ndarray:
    """Return lines of names beside their colours, hxwx3 uint8.

    Args:
        entries: one or more names with their colours, RGB in 0..255, as from `colours.legend`.
        width: of the lines in pixels; with 0 each name has a line of its own. A picture is as wide as its longest name.

    Examples:
        >>> draw_legend([("sky", (64, 160, 255)), ("road", (255, 96, 55))], width=200).shape
        (22, 200, 3)
    """
    places, left, line, right = [], MARGIN, 0, width
    for name, _ in entries:
        length = 30 + math.ceil(_letters().getlength(shown(name)))
        if left > MARGIN and left + length > width:
            left, line = MARGIN, line + 1
        places.append((left, LINE * line))
        left += length
        right = max(right, left)
    picture = Image.new("RGB", (right, LINE * (line + 1)), "white")
    draw = ImageDraw.Draw(picture)
    for (name, colour), (left, top) in zip(entries, places, strict=True):
        draw.rectangle((left, top + 4, left + 14, top + 17), fill=colour, outline=(90, 90, 90))
        draw.text((left + 20, top + 16), shown(name), INK, _letters(), anchor="ls")
    return np.array(picture)


def write(tile: np.ndarray, text: str, left: int, bottom: int) -> np.ndarray:
    """Return an image, HxWx3 uint8, with a text on it."""
    picture = Image.fromarray(tile)
    ImageDraw.Draw(picture).text((left, bottom), text, INK, _letters(), anchor="ls")
    return np.array(picture)


@cache
def _letters() -> ImageFont.FreeTypeFont:
    import matplotlib  # whose DejaVu Sans has more letters than ASCII's, which is all that OpenCV and Pillow have

    return ImageFont.truetype(Path(matplotlib.get_data_path(), "fonts/ttf/DejaVuSans.ttf"), 12)
