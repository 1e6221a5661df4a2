"""Example pictures for the demo's page: drawn animals, whose masks are known."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.random import default_rng

from unetseg.data.drawing import draw_animal
from unetseg.data.pets import mask_values
from unetseg.names import PET_CLASSES

BREEDS = ("striped", "pointed", "patched")
SIZE, SIMILARITY, SEED = 256, 0.3, 7_000_000
"""Side in pixels and likeness of coat and scene; the numbers of data=synthetic's pictures don't reach the seed."""


@dataclass(frozen=True)
class ExamplePicture:
    """A picture and its mask, both of one size."""

    name: str
    picture: np.ndarray
    """HxWx3 uint8."""
    truth: np.ndarray | None
    """HxW uint8 classes, IGNORE included; None where the classes of the model are others than an animal's."""


def draw_examples(classes: Sequence[str], border: str = "pet") -> list[ExamplePicture]:
    """Draw the examples for a model.

    Args:
        classes: names of the model's classes.
        border: what the animal's boundary counts as, see `unetseg.data.pets.load`.

    Examples:
        >>> example = draw_examples(("background", "pet"))[0]
        >>> example.picture.shape, np.unique(example.truth).tolist()
        ((256, 256, 3), [0, 1])
    """
    target = next((target for target, names in PET_CLASSES.items() if names == tuple(classes)), None)
    examples = []
    for number, breed in enumerate(BREEDS):
        picture, trimap = draw_animal(default_rng([SEED, number]), size=SIZE, breed=breed, similarity=SIMILARITY)
        known = border if border in ("pet", "background", "ignore") else "pet"  # a checkpoint may be a stranger's
        truth = None if target is None else mask_values(target, known).table[trimap]
        examples.append(ExamplePicture(breed, picture, truth))
    return examples
