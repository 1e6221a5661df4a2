"""Pictures of a run. Plotting only: what is drawn has been measured elsewhere."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from unetseg.config import IGNORE

matplotlib.use("Agg")

PALETTE = np.array(
    [[0, 0, 0], [255, 96, 55], [64, 160, 255], [120, 220, 90], [250, 210, 60], [200, 120, 250]], np.uint8
)
"""Colours of the classes 0, 1, ...; class 0 is not drawn."""
MISSED, INVENTED = (64, 130, 255), (255, 60, 60)
"""Colours of errors: a class overlooked, and one seen where there is none."""


@dataclass(frozen=True)
class Sample:
    """A picture with its masks, all of one size."""

    name: str
    image: np.ndarray
    """HxWx3 uint8."""
    target: np.ndarray
    """HxW uint8 classes, IGNORE included."""
    predicted: np.ndarray
    """HxW uint8 classes."""


def overlay(image: np.ndarray, mask: np.ndarray, opacity: float = 0.55) -> np.ndarray:
    """Return the picture, HxWx3 uint8, with the classes of the mask, HxW, tinted; class 0 and IGNORE stay."""
    drawn = (mask > 0) & (mask != IGNORE)
    colours = PALETTE[np.where(drawn, (mask - 1) % (len(PALETTE) - 1) + 1, 0)]
    mixed = (1 - opacity) * image + opacity * colours
    return np.where(drawn[..., None], mixed, image).astype(np.uint8)


def errors(image: np.ndarray, target: np.ndarray, predicted: np.ndarray) -> np.ndarray:
    """Return a pale picture, HxWx3 uint8, with missed pixels blue and invented ones red."""
    pale = (0.35 * image + 0.65 * 255).astype(np.uint8)
    wrong = (predicted != target) & (target != IGNORE)
    pale[wrong & (target > 0)] = MISSED
    pale[wrong & (target == 0)] = INVENTED
    return pale


def predictions(samples: Sequence[Sample], captions: Sequence[str], path: Path) -> None:
    """Write one row a sample: the picture, the truth, the prediction, the errors; a caption stands at its left."""
    columns = ("picture", "truth", "prediction", "errors (blue missed, red invented)")
    figure = Figure(figsize=(8, 1.95 * len(samples) + 0.4), dpi=110, layout="constrained")
    axes = figure.subplots(len(samples), len(columns), squeeze=False)
    for row, sample, caption in zip(axes, samples, captions, strict=True):
        pictures = (
            sample.image,
            overlay(sample.image, sample.target),
            overlay(sample.image, sample.predicted),
            errors(sample.image, sample.target, sample.predicted),
        )
        for axis, picture in zip(row, pictures, strict=True):
            axis.imshow(picture)
            axis.set_xticks([])
            axis.set_yticks([])
        row[0].set_ylabel(f"{caption}\n{sample.name}", fontsize=8)
    for axis, column in zip(axes[0], columns, strict=True):
        axis.set_title(column, fontsize=8)
    figure.savefig(path)


def curves(metrics: Path, path: Path) -> None:
    """Write the learning curves of a metrics.csv: losses over steps, IoU and Boundary IoU over epochs."""
    table = pd.read_csv(metrics)
    figure = Figure(figsize=(9, 2.8), dpi=110, layout="constrained")
    panels = (
        ("loss", "step", ("train/loss", "val/loss")),
        ("IoU", "epoch", ("train/iou", "val/iou", "val/iou_per_image")),
        ("Boundary IoU", "epoch", ("train/boundary_iou", "val/boundary_iou")),
    )
    for axis, (title, x, names) in zip(figure.subplots(1, len(panels)), panels, strict=True):
        for name in names:
            rows = table[table.name == name]
            if len(rows):
                axis.plot(rows[x], rows.value, marker="." if len(rows) < 40 else None, linewidth=1.2, label=name)
        axis.set_title(title, fontsize=10)
        axis.set_xlabel(x, fontsize=8)
        axis.tick_params(labelsize=8)
        axis.grid(alpha=0.3)
        if axis.lines:
            axis.legend(fontsize=7)
    figure.savefig(path)
