"""The colours of classes can be told apart, and class 0 has one wherever it isn't the background."""

import cv2
import numpy as np
import pytest

from unetseg.data.colours import FIRST, PALETTE, class_colours, is_background, legend


def test_twenty_three_classes_their_class_0_and_ignored_pixels_can_be_told_apart():
    """In CIELAB, where a distance of 2.3 is just noticeable: ten times as much."""
    colours = np.array([*PALETTE[1:], FIRST, (255, 255, 255)], np.float32)[None] / 255
    lab = cv2.cvtColor(colours, cv2.COLOR_RGB2LAB)[0]
    distances = np.linalg.norm(lab[:, None] - lab, axis=-1)
    assert len(lab) == 25
    assert distances[~np.eye(len(lab), dtype=bool)].min() > 23


def test_more_classes_begin_again_at_the_colour_of_class_1():
    colours = class_colours(60)
    assert np.array_equal(colours[24:47], colours[1:24])


@pytest.mark.parametrize(("first", "background"), [("Background", True), ("void", True), ("sky", False)])
def test_class_0_is_in_the_legend_unless_it_is_the_background(first, background):
    names = [first, "road", "car"]
    assert is_background(names) == background
    entries = legend(names)
    assert [name for name, _ in entries] == names[background:]
    expected = class_colours(3, background=background)[background:]
    assert [colour for _, colour in entries] == [tuple(colour) for colour in expected.tolist()]
