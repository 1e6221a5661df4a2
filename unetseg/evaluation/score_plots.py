"""Figures of scores: by picture, epoch, class, confidence, distance to the edge and cut skip. Plotting only."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from unetseg.data.colours import is_background, legend, overlay
from unetseg.evaluation.calibration import calibration_error
from unetseg.evaluation.overlays import Sample, errors, kinds_of_errors
from unetseg.evaluation.style import INK, LEVEL_COLOURS, SOFT, integer_ticks, legend_beside, styled, zero_line
from unetseg.names import shown

if TYPE_CHECKING:
    import pandas as pd

MOST_WRITTEN = 14
"""Classes of a confusion matrix in which the numbers are written."""


@styled
def predictions(samples: Sequence[Sample], captions: Sequence[str], classes: Sequence[str], path: Path) -> None:
    """Write a row for each sample: its picture, truth, prediction and errors, with a caption at the left.

    The colours of the classes and of the errors stand below.
    """
    columns = ("picture", "truth", "prediction", "errors")
    background = is_background(classes)
    entries = [*legend(classes), *kinds_of_errors(classes).items()]
    in_a_line = 6
    lines = -(-len(entries) // in_a_line)
    figure = Figure(figsize=(8, 1.95 * len(samples) + 0.3 + 0.2 * lines))
    axes = figure.subplots(len(samples), len(columns), squeeze=False)
    for row, sample, caption in zip(axes, samples, captions, strict=True):
        pictures = (
            sample.image,
            overlay(sample.image, sample.target, background=background),
            overlay(sample.image, sample.predicted, background=background),
            errors(sample.image, sample.target, sample.predicted, background=background),
        )
        for axis, picture in zip(row, pictures, strict=True):
            axis.imshow(picture)
            axis.set_xticks([])
            axis.set_yticks([])
            axis.spines[:].set_visible(False)
        row[0].set_ylabel(f"{caption}\n{sample.name}")
    for axis, column in zip(axes[0], columns, strict=True):
        axis.set_title(column)
    boxes = [Rectangle((0, 0), 1, 1, color=np.array(colour) / 255) for _, colour in entries]
    names = [_shortened(name) for name, _ in entries]
    figure.legend(boxes, names, loc="outside lower center", ncols=min(in_a_line, len(entries)))
    figure.savefig(path)


@styled
def curves(metrics: Path, path: Path) -> None:
    """Write the learning curves of a metrics.csv: losses over steps, IoU and Boundary IoU over epochs."""
    import pandas as pd  # takes a second, for which the first training step needn't wait

    table = pd.read_csv(metrics)
    figure = Figure(figsize=(9, 2.8))
    panels = (
        ("loss", "step", ("train/loss", "val/loss")),
        ("IoU", "epoch", ("train/iou", "val/iou", "val/iou_per_image")),
        ("Boundary IoU", "epoch", ("train/boundary_iou", "val/boundary_iou")),
    )
    labels = ("training", "validation", "validation, mean over the images")
    handles = {}
    for axis, (quantity, x, names) in zip(figure.subplots(1, len(panels)), panels, strict=True):
        for name, label, colour in zip(names, labels, ("C0", "C1", "C2"), strict=False):
            rows = table[table.name == name]
            if len(rows):
                marker = "o" if len(rows) < 40 else None
                (handles[label],) = axis.plot(rows[x], rows.value, marker=marker, color=colour)
        axis.set_xlabel(x)
        axis.set_ylabel(quantity)
        integer_ticks(axis, table[table.name.isin(names)][x])
    shown = [label for label in labels if label in handles]
    figure.legend([handles[label] for label in shown], shown, loc="outside lower center", ncols=len(labels))
    figure.savefig(path)


@styled
def edge_distance(table: pd.DataFrame, path: Path) -> None:
    """Write the error rate by distance to the mask's edge, in its interval."""
    figure = Figure(figsize=(5, 3.2))
    _error_rates(figure.subplots(), {"": (table, "C0")})
    figure.savefig(path)


@styled
def confusion(table: pd.DataFrame, path: Path) -> None:
    """Write the shares of each true class's pixels by the class that is predicted, as a map; each row sums to 1.

    Args:
        table: CxC pixels, a row for each true class, a column for each predicted one.
        path: of the PNG.
    """
    count = len(table)
    shares = (table / table.sum(axis=1).to_numpy()[:, None].clip(1)).to_numpy()
    side = 2.2 + 0.42 * min(count, 30)
    figure = Figure(figsize=(side + 0.8, side))
    axis = figure.subplots()
    image = axis.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    names = [_shortened(name) for name in table.columns]
    axis.set_xticks(range(count), names, rotation=90 if count > 4 else 0)
    axis.set_yticks(range(count), names)
    axis.set_xlabel("predicted")
    axis.set_ylabel("true")
    axis.grid(False)
    for row, column in np.ndindex(shares.shape) if count <= MOST_WRITTEN else ():
        if table.iloc[row, column]:
            colour = "white" if shares[row, column] > 0.5 else INK
            axis.text(column, row, f"{shares[row, column]:.2f}", ha="center", va="center", color=colour, fontsize=6.5)
    figure.colorbar(image, ax=axis, label="share of the true class's pixels", shrink=0.8)
    figure.savefig(path)


@styled
def calibration(table: pd.DataFrame, path: Path) -> None:
    """Write the reliability diagram of a calibration.csv: above accuracy by confidence, below the shares of the pixels.

    A bar that ends below the diagonal is a model that is too sure of itself there.
    """
    figure = Figure(figsize=(4.2, 4.2))
    accuracy, share = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    middles, width = (table["from"] + table["to"]) / 2, 0.92 * (table["to"] - table["from"])
    accuracy.bar(middles, table.accuracy, width=width, color="C0", label="share of pixels that are right")
    accuracy.plot(table.confidence, table.confidence, "o", color=INK, label="mean confidence")
    accuracy.plot([0, 1], [0, 1], color=SOFT, linewidth=0.8, linestyle=":")
    accuracy.set_ylabel("accuracy")
    accuracy.set_ylim(0, 1)
    accuracy.set_title(f"expected calibration error {calibration_error(table):.3f}")
    share.bar(middles, table.pixels / max(table.pixels.sum(), 1), width=width, color="C0")
    share.set_xlabel("confidence: probability of the class that is predicted")
    share.set_ylabel("share of pixels")
    first = table["from"][table.pixels > 0].min()
    share.set_xlim(0.0 if np.isnan(first) else first, 1)
    figure.legend(*accuracy.get_legend_handles_labels(), loc="outside lower center", ncols=2)
    figure.savefig(path)


@styled
def lesions(tables: dict[str, pd.DataFrame], path: Path) -> None:
    """Write the figure of evaluate's lesions: the Shapley values of each level, and the errors of each cut."""
    figure = Figure(figsize=(11, 3.2))
    iou, boundary, where = figure.subplots(1, 3, width_ratios=(1, 1, 1.2))
    boundary.sharey(iou)
    values, rates = tables["shapley"], tables["lesion_edge_distance"]
    cuts = list(values.cut.unique())
    for axis, name, title in ((iou, "iou", "IoU"), (boundary, "boundary_iou", "Boundary IoU")):
        for number, cut in enumerate(cuts):
            rows = values[values.cut == cut]
            errors = np.abs(rows[[f"{name}_low", f"{name}_high"]].to_numpy().T - rows[name].to_numpy())
            positions = np.arange(len(rows)) + 0.27 * (number - 1)
            axis.bar(positions, rows[name], width=0.25, yerr=errors, ecolor=INK, capsize=2, label=cut)
        axis.set_xticks(np.arange(len(rows)), list(rows.level))
        zero_line(axis)
        axis.set_xlabel("level of the long skip")
        axis.set_ylabel(f"Shapley value, {title}")
        axis.grid(False, axis="x")
    legend_beside(boundary, title="cut by")
    by_mean = rates[rates.cut == "mean"]
    lines: dict[str, tuple[pd.DataFrame, Any]] = {"intact": (rates[rates.cut == "intact"], INK)}
    for level in rows.level:
        colour = LEVEL_COLOURS[level - 1] if level else SOFT
        lines[f"level {level} cut"] = by_mean[by_mean.levels == str(level)], colour
    lines["all cut"] = by_mean[by_mean.levels == "+".join(map(str, rows.level))], "C2"
    _error_rates(where, lines)
    where.lines[0].set(linewidth=4, alpha=0.35)  # wide and pale: it shows below a line that runs over it
    legend_beside(where, title="cut by the mean")
    figure.savefig(path)


@styled
def shifts(table: pd.DataFrame, path: Path) -> None:
    """Write the scores by the strength of each shift, with the interval of what is lost."""
    names = [name for name in table["shift"].unique() if name != "none"]
    clean = table[table.strength == 0]
    figure = Figure(figsize=(1.8 * len(names), 2.6))
    axes = figure.subplots(1, len(names), sharey=True)
    for axis, name in zip(axes, names, strict=True):
        rows = table[(table.strength == 0) | (table["shift"] == name)]
        for number, (score, label) in enumerate((("iou", "IoU"), ("boundary_iou", "Boundary IoU"))):
            intact = float(clean[score].iloc[0])
            axis.plot(rows.strength, rows[score], marker="o", color=f"C{number}", label=label)
            ends = (intact - rows[f"{score}_loss_high"], intact - rows[f"{score}_loss_low"])
            axis.fill_between(rows.strength, *ends, color=f"C{number}", alpha=0.15, linewidth=0)
        axis.set_title(name)
        axis.set_xlabel("strength")
        integer_ticks(axis, list(rows.strength))
    axes[0].set_ylim(bottom=0)
    axes[0].set_ylabel("score over the set")
    legend_beside(axes[-1])
    figure.savefig(path)


def _error_rates(axis: Axes, tables: dict[str, tuple[pd.DataFrame, Any]]) -> None:
    """Draw the error rates of tables by their labels, each in its colour."""
    for label, (table, colour) in tables.items():
        axis.plot(range(len(table)), table.error_rate, marker="o", color=colour, label=label)
        ends = (table.error_rate_low, table.error_rate_high)
        axis.fill_between(range(len(table)), *ends, color=colour, alpha=0.12, linewidth=0)
    names = band_labels(zip(table.from_px, table.to_px, strict=True))
    axis.set_xticks(range(len(names)), names)
    axis.set_xlabel("distance to the mask's edge (pixels)")
    axis.set_ylabel("share of wrong pixels")
    axis.set_ylim(bottom=0)


def band_labels(bands: Iterable[tuple[float, float]]) -> list[str]:
    """Return the names of bands of distances in pixels, by the first and last distance: 1, 2, 3–4, ... ≥ 33."""
    ends = [(f"{low:.0f}", f"{high:.0f}") for low, high in bands]
    return [f"≥ {low}" if high == "inf" else low if low == high else f"{low}–{high}" for low, high in ends]


def _shortened(name: str) -> str:
    """Return a class's name as it is shown in a figure: with at most 17 letters."""
    name = shown(name)
    return name if len(name) < 18 else f"{name[:16]}…"


@styled
def learning_rates(lrs: Sequence[float], losses: Sequence[float], suggestion: float | None, path: Path) -> None:
    """Write the loss over the learning rate of as many steps, with a line at the rate that is suggested."""
    figure = Figure(figsize=(5, 3))
    axis = figure.subplots()
    axis.plot(lrs, losses)
    axis.set_xscale("log")
    axis.set_xlabel("learning rate")
    axis.set_ylabel("running mean of the loss")
    if suggestion is not None:
        axis.axvline(suggestion, color=SOFT, linestyle="--", linewidth=1)
        axis.set_title(f"The loss fell fastest at {suggestion:.1e}")
    figure.savefig(path)
