"""The contents of many masks as a few arrays: what each holds, whatever they are joined with."""

import numpy as np
import pytest

from unetseg.data.contents import MaskContent, Masks

PALETTES = [b"", bytes(768), bytes(range(256)) * 3]


def random_contents(count: int, seed: int) -> list[MaskContent]:
    random = np.random.default_rng(seed)
    contents = []
    for _ in range(count):
        values = np.flatnonzero(random.random(256) < 0.02).astype(np.uint8)
        palette = PALETTES[random.integers(3)]
        contents.append(MaskContent(values, random.integers(1, 2**40, len(values)), palette, bool(random.integers(2))))
    return contents


def says(masks: Masks, row: int) -> tuple:
    """Return what the arrays say of a mask, as they are documented."""
    present = masks.pixels[row] > 0
    palette = masks.palettes[masks.palette[row]].tobytes() if masks.palette[row] >= 0 else b""
    pixels = dict(zip(masks.values[present].tolist(), masks.pixels[row][present].tolist(), strict=True))
    return pixels, palette, bool(masks.bilevel[row])


def expected(content: MaskContent) -> tuple:
    return dict(zip(content.values.tolist(), content.pixels.tolist(), strict=True)), content.palette, content.bilevel


@pytest.mark.parametrize("cut", [0, 1, 20, 39, 40])
def test_masks_that_are_joined_hold_what_each_held(cut):
    contents = random_contents(40, cut)
    joined = Masks.of(contents[:cut]).joined(Masks.of(contents[cut:]))
    assert len(joined) == 40
    assert [says(joined, row) for row in range(40)] == [expected(content) for content in contents]


def test_masks_that_are_taken_hold_what_they_held_in_the_order_asked_for():
    contents, places = random_contents(40, 0), [7, 3, 3, 39]
    taken = Masks.of(contents).take(places)
    assert [says(taken, row) for row in range(4)] == [expected(contents[place]) for place in places]
    assert len(Masks.of(contents).take([])) == len(Masks.of([])) == 0


def test_values_and_classes_are_counted_as_in_each_mask():
    contents = random_contents(40, 1)
    masks, table = Masks.of(contents), np.arange(256, dtype=np.uint8) % 3
    for value in range(256):
        assert masks.has(value).tolist() == [value in content.values for content in contents]
    for label in range(3):
        own = [int(content.pixels[table[content.values] == label].sum()) for content in contents]
        assert masks.pixels_of(table, label).tolist() == own
