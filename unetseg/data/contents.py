"""The contents of many files as a few arrays: the sizes of pictures, and the pixels of each value in masks.

Legend: N pictures or masks, V values that occur in any of the masks, P palettes that differ.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np


@dataclass(frozen=True)
class Sizes:
    """Height and width of N pictures.

    Examples:
        >>> Sizes.of([(480, 640), (8, 10)]).take([1]).sizes.tolist()
        [[8, 10]]
    """

    sizes: np.ndarray
    """Nx2 int64."""

    @classmethod
    def of(cls, contents: Iterable[tuple[int, int]]) -> Sizes:
        """Return the sizes of pictures."""
        return cls(np.array([*contents], np.int64).reshape(-1, 2))

    def __len__(self) -> int:
        return len(self.sizes)

    def take(self, positions: Sequence[int] | np.ndarray) -> Sizes:
        """Return the sizes at these positions."""
        return Sizes(self.sizes[positions])

    def joined(self, other: Sizes) -> Sizes:
        """Return these sizes, then the other ones."""
        return Sizes(np.concatenate([self.sizes, other.sizes]))


class MaskContent(NamedTuple):
    """The content of one mask."""

    values: np.ndarray
    """The values that occur in it, uint8, ascending."""
    pixels: np.ndarray
    """The number of pixels of each of them, int64."""
    palette: bytes = b""
    """Three bytes for each of 256 values; empty where the mask has no palette."""
    bilevel: bool = False
    """One bit a pixel."""


@dataclass(frozen=True)
class Masks:
    """The contents of N masks.

    Examples:
        >>> one = MaskContent(np.array([0, 255], np.uint8), np.array([60, 4]))
        >>> masks = Masks.of([one, MaskContent(np.array([1], np.uint8), np.array([64]))])
        >>> masks.values.tolist(), masks.pixels.tolist()
        ([0, 1, 255], [[60, 0, 4], [0, 64, 0]])
        >>> masks.has(255).tolist()
        [True, False]
    """

    values: np.ndarray
    """V uint8, ascending."""
    pixels: np.ndarray
    """NxV int64: the pixels of each value in each mask."""
    palettes: np.ndarray
    """Px256x3 uint8: the colours of the values."""
    palette: np.ndarray
    """N int64: the position in `palettes`, -1 of a mask without a palette."""
    bilevel: np.ndarray
    """N bool: one bit a pixel."""

    @classmethod
    def of(cls, contents: Iterable[MaskContent]) -> Masks:
        """Return the contents of masks as arrays."""
        numbers: dict[bytes, int] = {}
        lengths, values, pixels, palette, bilevel = [], [], [], [], []
        for content in contents:
            lengths.append(len(content.values))
            values.append(content.values.tobytes())
            pixels.append(content.pixels.astype(np.int64).tobytes())
            palette.append(numbers.setdefault(content.palette, len(numbers)) if content.palette else -1)
            bilevel.append(content.bilevel)
        found = np.frombuffer(b"".join(values), np.uint8)
        table = np.unique(found)
        counts = np.zeros((len(lengths), len(table)), np.int64)
        rows = np.repeat(np.arange(len(lengths)), np.array(lengths, np.int64))
        counts[rows, np.searchsorted(table, found)] = np.frombuffer(b"".join(pixels), np.int64)
        palettes = np.frombuffer(b"".join(numbers), np.uint8).reshape(-1, 256, 3)
        return cls(table, counts, palettes, np.array(palette, np.int64), np.array(bilevel, bool))

    def __len__(self) -> int:
        return len(self.pixels)

    def take(self, positions: Sequence[int] | np.ndarray) -> Masks:
        """Return the masks at these positions, with the values and palettes that they have."""
        own = np.asarray(positions, None if len(positions) else np.int64)
        pixels, palette = self.pixels[own], self.palette[own]
        used, numbers = pixels.any(0), np.unique(palette[palette >= 0])
        renumbered = np.where(palette < 0, -1, np.searchsorted(numbers, palette))
        return Masks(self.values[used], pixels[:, used], self.palettes[numbers], renumbered, self.bilevel[own])

    def joined(self, other: Masks) -> Masks:
        """Return these masks, then the other ones."""
        values = np.union1d(self.values, other.values)
        palettes, numbers = np.unique(
            np.concatenate([self.palettes, other.palettes]).reshape(-1, 768), axis=0, return_inverse=True
        )
        numbers = numbers.reshape(-1)
        parts, of_palette, first = [], [], 0
        for masks in (self, other):
            pixels = np.zeros((len(masks), len(values)), np.int64)
            pixels[:, np.searchsorted(values, masks.values)] = masks.pixels
            parts.append(pixels)
            of_palette.append(np.append(numbers[first : first + len(masks.palettes)], -1)[masks.palette])
            first += len(masks.palettes)
        bilevel = np.concatenate([self.bilevel, other.bilevel])
        pixels, palette = np.concatenate(parts), np.concatenate(of_palette)
        return Masks(values, pixels, palettes.reshape(-1, 256, 3), palette, bilevel)

    def has(self, value: int) -> np.ndarray:
        """Return which masks have a value, N bool."""
        return self.pixels[:, self.values == value].sum(1) > 0

    def pixels_of(self, table: np.ndarray, label: int) -> np.ndarray:
        """Return the pixels of a class, or of IGNORE, in each mask: N int64; `table` as in MaskValues."""
        return self.pixels[:, table[self.values] == label].sum(1)
