"""Errors on pictures are told apart."""

import numpy as np

from unetseg.evaluation.overlays import CONFUSED, INVENTED, MISSED, errors, kinds_of_errors
from unetseg.names import IGNORE

BLACK = np.zeros((1, 4, 3), np.uint8)


def test_errors_are_missed_invented_or_of_another_class():
    target, predicted = np.array([[1, 0, 1, IGNORE]], np.uint8), np.array([[0, 1, 2, 0]], np.uint8)
    drawn = errors(BLACK, target, predicted)[0]
    assert [tuple(pixel) for pixel in drawn[:3].tolist()] == [MISSED, INVENTED, CONFUSED]
    assert drawn[3].tolist() == [165, 165, 165], "pale, as nothing is known there"
    drawn = errors(BLACK, target, predicted, background=False)[0]
    assert [tuple(pixel) for pixel in drawn[:3].tolist()] == [CONFUSED] * 3


def test_a_legend_names_the_errors_that_there_may_be():
    assert [*kinds_of_errors(["background", "cat"])] == ["missed", "invented"]
    assert [*kinds_of_errors(["Background", "cat", "dog"])] == ["missed", "invented", "wrong class"]
    assert [*kinds_of_errors(["sky", "road"])] == ["wrong class"]
