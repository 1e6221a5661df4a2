"""The colours of classes can be told apart, and class 0 has one wherever it isn't the background."""

import cv2
import numpy as np
import pytest

from unetseg.data.colours import FIRST, PALETTE, class_colours, is_background, legend, overlay
from unetseg.names import IGNORE


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


def test_class_0_is_left_as_it_is_where_it_is_the_background():
    image, mask = np.zeros((1, 4, 3), np.uint8), np.array([[0, 1, 2, IGNORE]], np.uint8)
    drawn = overlay(image, mask, opacity=1, outlined=False)[0]
    assert not drawn[[0, 3]].any()
    first = overlay(image, mask, opacity=1, background=False, outlined=False)[0]
    assert first[0].tolist() == list(FIRST)
    assert np.array_equal(first[1:], drawn[1:])


@pytest.mark.parametrize(("label", "edge"), [(1, 0), (8, 255)])
def test_a_class_stands_out_from_a_picture_of_its_own_colour(label, edge):
    """Orange has a black outline and dark red a white one, on the pixels around it and on no others."""
    image, mask = np.zeros((7, 7, 3), np.uint8), np.zeros((7, 7), np.uint8)
    image[:], mask[3, 2:5] = PALETTE[label], label
    around = np.zeros((7, 7), bool)
    around[2:5, 1:6] = mask[2:5, 1:6] == 0
    drawn = overlay(image, mask)
    assert (drawn[around] == edge).all()
    assert np.abs(drawn[~around].astype(int) - PALETTE[label]).max() <= 1


def test_classes_that_touch_have_no_outline_between_them():
    mask = np.array([[1, 2, 2]], np.uint8)
    assert np.array_equal(overlay(np.zeros((1, 3, 3), np.uint8), mask, opacity=1)[0], PALETTE[mask[0]])
