"""Legends: every name beside its colour, in lines that are wide enough."""

import numpy as np
import pytest

from unetseg.data.legend import LINE, draw_legend

ENTRIES = [("Gefäß", (255, 96, 55)), ("vein", (64, 160, 255)), ("v" * 60, (0, 100, 0))]


@pytest.mark.parametrize(("width", "lines"), [(0, 3), (150, 2), (2000, 1)])
def test_every_name_stands_whole_beside_its_colour(width, lines):
    picture = draw_legend(ENTRIES, width)
    assert len(picture) == LINE * lines
    assert picture.shape[1] >= width
    for _, colour in ENTRIES:
        assert (picture == colour).all(-1).sum() == 13 * 12
    assert (picture[:, -1] == 255).all(), "no letter is cut off"
    names = np.array(draw_legend([("\u00e4", (0, 0, 0))])), np.array(draw_legend([("\u00fc", (0, 0, 0))]))
    assert not np.array_equal(*names), "letters beyond ASCII are letters"
