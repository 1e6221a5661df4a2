"""Figures of the mechanisms of a trained model, one for each of names.MECHANISMS. Plotting only."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure

from unetseg.evaluation.shattering import expected_acf
from unetseg.evaluation.style import INK, LEVEL_COLOURS, SOFT, integer_ticks, legend_beside, styled, zero_line

if TYPE_CHECKING:
    import pandas as pd

FEATURES = ("deep", "skip")
"""The two that meet, in the order of their colours."""


@styled
def similarity(table: pd.DataFrame, path: Path) -> None:
    """Write how alike the deep features and the skip's are at each level."""
    figure = Figure(figsize=(4.6, 2.6))
    axis = figure.subplots()
    errors = np.abs(table[["cka_low", "cka_high"]].to_numpy().T - table.cka.to_numpy())
    places = np.arange(len(table))
    axis.bar(places - 0.2, table.cka, yerr=errors, ecolor=INK, capsize=2, width=0.38, label="all")
    axis.bar(places + 0.2, table.cka_at_places, width=0.38, label="without each\nposition's mean")
    axis.set_ylim(0, 1)
    legend_beside(axis)
    axis.set_ylabel("CKA of deep and skip features")
    _levels(axis, table)
    figure.savefig(path)


@styled
def rank(table: pd.DataFrame, path: Path) -> None:
    """Write the effective rank of the deep features and of the skip's at each level."""
    figure = Figure(figsize=(4.6, 2.6))
    axis = figure.subplots()
    _bars(axis, table, "effective_rank")
    axis.set_ylabel("effective rank")
    legend_beside(axis)
    figure.savefig(path)


@styled
def reuse(table: pd.DataFrame, path: Path) -> None:
    """Write by which weights the decoder reads the deep features and the skip's, and what it gets from each."""
    figure = Figure(figsize=(8, 2.6))
    axes = figure.subplots(1, 2)
    for axis, name, title in zip(
        axes, ("weight", "contribution"), ("mean |w|", "share of |w| x rms of what is read"), strict=True
    ):
        _bars(axis, table, name)
        axis.set_ylabel(title)
    legend_beside(axes[1])
    figure.savefig(path)


@styled
def spectra(table: pd.DataFrame, path: Path) -> None:
    """Write the share of the power in each band of frequencies, a panel for each level."""
    levels = list(table.level.unique())
    figure = Figure(figsize=(2.2 * len(levels) + 1, 2.6))
    axes = figure.subplots(1, len(levels), sharey=True, squeeze=False)[0]
    for axis, level in zip(axes, levels, strict=True):
        for number, name in enumerate(FEATURES):
            rows = table[(table.level == level) & (table.features == name)]
            shares = rows.share.where(rows.share > 1e-12)  # nearest neighbours leave bands empty
            axis.plot((rows["from"] + rows["to"]) / 2, shares, marker="o", color=f"C{number}", label=name)
        axis.set_title(f"level {level}")
        axis.set_xlabel("cycles a pixel")
    axes[0].set_yscale("log")
    axes[0].set_ylabel("share of the power")
    legend_beside(axes[-1])
    figure.savefig(path)


@styled
def landscape(table: pd.DataFrame, path: Path) -> None:
    """Write the loss on the plane of two random directions, along each of these, and along the sharpest direction."""
    figure = Figure(figsize=(9.6, 2.8))
    heat, random, top = figure.subplots(1, 3, width_ratios=(1.15, 1, 1))
    plane = table[table.direction == "plane"].pivot(index="b", columns="a", values="loss")
    values = plane.to_numpy().clip(max=np.finfo(np.float32).max)
    finite = values[np.isfinite(values)]
    low, high = finite.min(), finite.max()
    far = low > 0 and high > 20 * low  # a basin with steep walls shows on a logarithmic scale alone
    levels = np.geomspace(low, high, 16) if far else np.linspace(low, high if high > low else low + 1, 16)
    norm = LogNorm(low, high) if far else None
    drawn = heat.contourf(plane.columns, plane.index, values, levels=levels, norm=norm, cmap="viridis")
    heat.contour(plane.columns, plane.index, values, levels=levels, norm=norm, colors="white", linewidths=0.3)
    heat.plot(0, 0, "+", color="white", markersize=7)
    heat.set_xlabel("a, first random direction")
    heat.set_ylabel("b, second random direction")
    figure.colorbar(drawn, ax=heat, label="loss", format="%.3g")
    for name in ("first", "second"):
        line = table[table.direction == name]
        random.plot(line.a, line.loss, label=name)
    random.set_xlabel("a, length of the weights' filters")
    random.set_ylabel("loss")
    legend_beside(random)
    line = table[table.direction == "top"]
    top.plot(line.a, line.loss, label="loss")
    top.plot(line.a, quadratic(line), color=SOFT, linestyle=":", label="quadratic part")
    top.set_xlabel("a, 1/√λ along the sharpest direction")
    legend_beside(top)
    figure.savefig(path)


def quadratic(line: pd.DataFrame) -> np.ndarray:
    """Return the parabola of curvature 1 through a line's middle, with the slope that the loss has there."""
    a, loss = line.a.to_numpy(), line.loss.to_numpy()
    middle = len(a) // 2
    slope = (loss[middle + 1] - loss[middle - 1]) / (a[middle + 1] - a[middle - 1])
    return loss[middle] + slope * a + a**2 / 2


@styled
def shattering(table: pd.DataFrame, path: Path) -> None:
    """Write how alike gradients are by their distance on a line of inputs, a line for each depth."""
    figure = Figure(figsize=(8.4, 3.0))
    acf, cosine = figure.subplots(1, 2)
    depths = list(dict.fromkeys(table.depth))
    for number, depth in enumerate(depths):
        rows = table[table.depth == depth]
        colour = colormaps["viridis"](number / len(depths))
        for axis, name in ((acf, "acf"), (cosine, "cosine")):
            axis.plot(rows.lag, rows[name], color=colour, linewidth=1.1, label=depth)
    lags = sorted(table.lag.unique())
    for kind, dashes in (("white", ":"), ("brown", "--")):
        acf.plot(lags, expected_acf(kind, 2 * lags[-1])[: len(lags)], dashes, color=SOFT, label=f"{kind} noise")
    for axis, title in ((acf, "autocorrelation"), (cosine, "cosine")):
        zero_line(axis)
        axis.set_ylabel(f"{title} of the gradients")
        axis.set_xlabel(f"distance in points, of {2 * lags[-1]} from picture to picture")
    handles, labels = acf.get_legend_handles_labels()
    legend_beside(cosine, handles=handles, labels=labels, labelspacing=0.25)
    figure.savefig(path)


@styled
def hellinger(table: pd.DataFrame, path: Path) -> None:
    """Write how far the features of two sets lie apart at each depth, and what the choice of pictures brings."""
    figure = Figure(figsize=(6.2, 2.8))
    axis = figure.subplots()
    places = range(len(table))
    errors = np.abs(table[["hellinger_low", "hellinger_high"]].to_numpy().T - table.hellinger.to_numpy())
    axis.bar(places, table.hellinger, yerr=errors, ecolor=INK, capsize=2, width=0.6, label="from the training pictures")
    axis.plot(places, table.within, "D", color="C1", label="between halves of the training pictures")
    axis.set_xticks(places, list(table.depth), rotation=60)
    axis.set_ylabel("Hellinger distance of the features")
    axis.set_ylim(bottom=0)
    axis.grid(False, axis="x")
    legend_beside(axis)
    figure.savefig(path)


@styled
def oscillation(table: pd.DataFrame, path: Path) -> None:
    """Write the norms of the deep features and of the skip's at each reading, a line for each level."""
    figure = Figure(figsize=(8.4, 2.8))
    axes = figure.subplots(1, 2, sharey=True)
    for axis, name in zip(axes, FEATURES, strict=True):
        for level, rows in table[table.features == name].groupby("level"):
            colour = SOFT if level == 0 else LEVEL_COLOURS[level - 1]
            axis.plot(rows.step, rows.rms, color=colour, marker=".", linewidth=1.1, label=f"level {level}")
        axis.set_title(f"{name} features")
        axis.set_xlabel("step")
        axis.set_yscale("log")
        integer_ticks(axis, table.step)
    axes[0].set_ylabel("root mean square")
    legend_beside(axes[1])
    figure.savefig(path)


DRAW: dict[str, Callable[[pd.DataFrame, Path], None]] = {
    "similarity": similarity,
    "rank": rank,
    "reuse": reuse,
    "spectra": spectra,
    "landscape": landscape,
    "shattering": shattering,
    "hellinger": hellinger,
    "oscillation": oscillation,
}


def _bars(axis: Axes, table: pd.DataFrame, name: str) -> None:
    """Draw a bar for the deep features and one for the skip's at each level, with intervals where there are some."""
    for number, features in enumerate(FEATURES):
        rows = table[table.features == features]
        errors = None
        if f"{name}_low" in rows:
            errors = np.abs(rows[[f"{name}_low", f"{name}_high"]].to_numpy().T - rows[name].to_numpy())
        places = np.arange(len(rows)) + 0.35 * (number - 0.5)
        axis.bar(places, rows[name], width=0.33, yerr=errors, ecolor=INK, capsize=2, label=features)
    _levels(axis, rows)


def _levels(axis: Axes, table: pd.DataFrame) -> None:
    axis.set_xticks(range(len(table)), list(map(str, table.level)))
    axis.set_xlabel("level of the long skip")
    axis.grid(False, axis="x")
