"""Augmentation: what is drawn for a picture, and that nothing drawn depends on anything else."""

from itertools import combinations, product

import numpy as np
import pytest

from unetseg.data.transforms import Transform
from unetseg.data.view import View

CHANCES = {"HorizontalFlip": 0.5, "Affine": 0.8, "ColorJitter": 0.8}


@pytest.fixture(scope="module")
def drawn():
    """Return, for each of 1,000 pictures, what each step drew: nothing where it was left out."""
    transform, found = Transform(View(32), augment=True), []
    image, mask = np.zeros((32, 32, 3), np.uint8), np.zeros((32, 32), np.uint8)
    for index in range(1000):
        transform(image, mask, (0, 0, index))
        found.append({type(step).__name__: step.get_applied_params() for step in transform.steps})
    return found


def test_each_step_is_taken_or_left_out_for_itself(drawn):
    assert drawn[0].keys() == CHANCES.keys()
    for taken in product((True, False), repeat=3):
        chance = np.prod([p if yes else 1 - p for yes, p in zip(taken, CHANCES.values(), strict=True)])
        seen = np.mean([tuple(map(bool, each.values())) == taken for each in drawn])
        assert seen == pytest.approx(chance, abs=4 * (chance * (1 - chance) / len(drawn)) ** 0.5), taken


def test_what_is_drawn_in_one_step_says_nothing_about_what_is_drawn_elsewhere(drawn):
    both = [each for each in drawn if each["Affine"] and each["ColorJitter"]]
    assert len(both) > 500
    centre = np.array([15.5, 15.5, 1])
    moved = np.array([each["Affine"]["matrix"] @ centre - centre for each in both])
    numbers = {
        "across": moved[:, 0],
        "down": moved[:, 1],
        "flip": [bool(each["HorizontalFlip"]) for each in both],
        "rotate": [each["Affine"]["rotate"] for each in both],
        "scale": [each["Affine"]["scale"]["x"] for each in both],
        **{name: [each["ColorJitter"][name] for each in both] for name in ("brightness", "contrast", "hue")},
        "first": [each["ColorJitter"]["order"][0] for each in both],
    }
    for one, other in combinations(numbers, 2):
        together = np.corrcoef(numbers[one], numbers[other])[0, 1]
        assert abs(together) < 4 / len(both) ** 0.5, (one, other)
