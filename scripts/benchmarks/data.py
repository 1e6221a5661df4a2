"""The loader alone, held against decoding alone: OpenCV reads every picture and mask whole, one after the other.

Ours also checks, translates the mask's values, augments, resizes and puts batches together; with several workers, a
reduced JPEG or a cache it may be faster than decoding all the same.
"""

from __future__ import annotations

import itertools
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import get_args

import cv2
import numpy as np

from benchmarks.comparison import interleaved, spread, timed
from benchmarks.pictures import link_pets
from benchmarks.processes import training
from benchmarks.report import Result, Row, listed
from unetseg.data.sources import make_data
from unetseg.options.compose import compose
from unetseg.options.data_schema import Pets
from unetseg.options.schema import Train

WORKERS = (0, 1, 2)
DECODING = "decode only"

Way = tuple[str, bool, int]
"""data.cache, data.augment and data.workers."""


def caches() -> list[str]:
    """Return where data.cache keeps what a loader reads, first nowhere; with `device` a loader reads nothing."""
    return [kind for kind in get_args(Pets.model_fields["cache"].annotation) if kind not in ("auto", "device")]


def epoch(overrides: list[str]) -> Callable[[], int]:
    """Return a function that loads the training images once and returns their number; its workers live on."""
    options = compose("train", Train, overrides)
    data = make_data(options.data.model_dump(), options.seed)
    data.prepare_data()
    data.setup()
    loader = data.train_dataloader()
    return lambda: sum(len(batch.indices) for batch in loader)


def decode(root: Path) -> int:
    """Decode the training pictures and masks of a set in the Pets layout; return their number."""
    names = [line.split()[0] for line in (root / "annotations/trainval.txt").read_text().splitlines()]
    names = [name for i, name in enumerate(names) if i % 10]
    for name in names:
        cv2.imread(str(root / f"images/{name}.jpg"))
        cv2.imread(str(root / f"annotations/trimaps/{name}.png"), cv2.IMREAD_UNCHANGED)
    return len(names)


def measure(pets: Path, size: int, batch_size: int, steps: int, rounds: int) -> Result:
    """Return the images/s of the loader for each number of workers, cache, and with and without augmentation."""
    kinds: dict[str, Callable[[], object]] = {}
    images = steps * batch_size
    with tempfile.TemporaryDirectory() as folder:
        root = link_pets(pets, Path(folder) / "pets", train_images=images)
        kinds[DECODING] = lambda: decode(root)
        ways: list[Way] = list(itertools.product(caches(), (False, True), WORKERS))
        for cache, augment, workers in ways:
            overrides = training(root, "resnet18", size, batch_size, 1, workers)
            overrides += [f"data.augment={str(augment).lower()}", f"data.cache={cache}"]
            kinds[label(cache, augment, workers)] = epoch(overrides)
        measured = interleaved({kind: timed(work) for kind, work in kinds.items()}, rounds)
        rows = [row(measured, images, DECODING, None)]
        rows += [row(measured, images, label(*way), way) for way in ways]
        kinds.clear()  # ends the workers before their files go
    setting = f"{size} px, batch {batch_size}, {images} images, {rounds} interleaved rounds, range of the middle half"
    return Result(setting, [rows], listed(measured, "s"))


def label(cache: str, augment: bool, workers: int) -> str:
    """Return the name of a way to load."""
    return f"cache {cache}, augment {str(augment).lower()}, {workers} workers"


def row(seconds: dict[str, np.ndarray], images: int, kind: str, way: Way | None) -> Row:
    """Return the row of a way to load (None: of decoding) from the seconds that `images` images took."""
    cache, augment, workers = way or ("-", None, "-")
    return {
        "": "loader" if way else kind,
        "cache": cache,
        "augmentation": {True: "on", False: "off", None: "-"}[augment],
        "workers": str(workers),
        "images/s": spread(images / seconds[kind]),
        "times decoding": spread(seconds[DECODING] / seconds[kind]),
    }
