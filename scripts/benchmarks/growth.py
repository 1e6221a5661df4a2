"""How the cost of training grows with the number of images, of pixels and of epochs: half, once and twice of each.

"Training" is all images trained on at the speed of the summary: its images_per_second, which leaves the first batch of
each epoch and validation out. "Whole run" is the summary's seconds: from after the imports to the end of the test, with
what is the same for every run. The exponent b of seconds = a * quantity^b is fitted in each round: 1 is linear.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import NamedTuple

import numpy as np

from benchmarks import processes
from benchmarks.comparison import Spread, exponent, interleaved, spread
from benchmarks.pictures import link_pets
from benchmarks.report import Result, Row, listed

KINDS = ("training", "whole run")


class Cell(NamedTuple):
    """One run."""

    images: int
    size: int
    epochs: int


def axes(images: int, size: int, epochs: int) -> dict[str, list[Cell]]:
    """Return the runs of each axis around the middle one, with half and twice its images, pixels' side and epochs."""
    middle = Cell(images, size, epochs)
    around = {"images": "images", "pixels": "size", "epochs": "epochs"}
    return {
        axis: [middle._replace(**{field: int(factor * getattr(middle, field))}) for factor in (0.5, 1, 2)]
        for axis, field in around.items()
    }


def quantity(axis: str, cell: Cell) -> int:
    """Return what the axis changes; the pixels are those of an image."""
    return {"images": cell.images, "pixels": cell.size**2, "epochs": cell.epochs}[axis]


def measure(
    pets: Path, encoder: str, size: int, batch_size: int, steps: int, epochs: int, workers: int, rounds: int
) -> Result:
    """Return the seconds of each run and the fitted exponents; the middle run stands in all axes."""
    around = axes(steps * batch_size, size, epochs)
    cells = list(dict.fromkeys(cell for line in around.values() for cell in line))
    whole: dict[Cell, list[float]] = {cell: [] for cell in cells}
    with tempfile.TemporaryDirectory() as name:
        folder, runs = Path(name), count()
        roots = {n: link_pets(pets, folder / f"pets{n}", train_images=n) for n in {cell.images for cell in cells}}

        def run(cell: Cell) -> Callable[[], float]:
            overrides = processes.training(roots[cell.images], encoder, cell.size, batch_size, cell.epochs, workers)

            def seconds() -> float:
                summary = processes.ours(overrides, folder / f"run{next(runs)}")
                whole[cell].append(summary["seconds"])
                return cell.images * cell.epochs / summary["images_per_second"]

            return seconds

        training = interleaved({str(tuple(cell)): run(cell) for cell in cells}, rounds, warm_up=0)
    measured = {
        KINDS[0]: {cell: training[str(tuple(cell))] for cell in cells},
        KINDS[1]: {cell: np.array(values) for cell, values in whole.items()},
    }
    setting = (
        f"{encoder}, batch {batch_size}, {workers} workers, {rounds} interleaved rounds, range of all rounds; "
        f"the middle: {steps * batch_size} images, {size} px, {epochs} epochs"
    )
    kept = {f"{kind}, {tuple(cell)}": values for kind, of in measured.items() for cell, values in of.items()}
    return Result(setting, [*tables(around, measured)], listed(kept, "s"))


def tables(around: dict[str, list[Cell]], measured: dict[str, dict[Cell, np.ndarray]]) -> tuple[list[Row], list[Row]]:
    """Return the table of the runs and that of the exponents, from the seconds of each kind, cell and round."""
    runs: list[Row] = [
        {"grows": axis, "": f"{quantity(axis, cell):,}"}
        | {f"{kind}, s": spread(measured[kind][cell], whole=True) for kind in KINDS}
        for axis, cells in around.items()
        for cell in cells
    ]
    exponents: list[Row] = []
    for axis, cells in around.items():
        quantities = np.array([quantity(axis, cell) for cell in cells])
        row: dict[str, str | Spread] = {"exponent of": axis}
        for kind in KINDS:
            of_rounds = np.stack([measured[kind][cell] for cell in cells], axis=1)  # rounds x cells
            row[kind] = spread(np.array([exponent(quantities, seconds) for seconds in of_rounds]), whole=True)
        exponents.append(row)
    return runs, exponents
