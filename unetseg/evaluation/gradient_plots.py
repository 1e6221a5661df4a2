"""Figures of a gradient's flow, from the tables of its readings. Plotting only."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.patches import Rectangle

from unetseg.evaluation.style import INK, LEVEL_COLOURS, SOFT, integer_ticks, legend_beside, styled, zero_line
from unetseg.names import AUXILIARY, EXITS

if TYPE_CHECKING:
    import pandas as pd

RESOLUTION = 2.0**-25
"""Half the relative spacing of float32 numbers: a smaller update doesn't change a weight."""
EXIT_COLOURS = dict(zip(EXITS, ("#fde725", "#5ec962", "#21918c", "#3b528b", "#9aa3ad"), strict=True))
EXIT_COLOURS[AUXILIARY] = "#d55e00"
"""From the finest level to the bottleneck, then the auxiliary heads."""


@styled
def gradient_flow(table: Path, path: Path) -> None:
    """Write the figure of a gradient_flow.csv.

    Left, block by step: log10 rms of the gradient, as in Drozdzal et al. 2016, hatched where the step left half of the
    block's weights or more unchanged. Right: the skip share of each level, and the update ratio of each block.
    """
    readings = _read_csv(table)
    blocks = readings[readings.kind == "block"]
    order = list(dict.fromkeys(blocks.block))
    rms, stalled, ratio = (
        blocks[blocks.metric == metric].pivot(index="block", columns="step", values="value").loc[order]
        for metric in ("rms", "stalled", "update_ratio")
    )
    steps = rms.columns.to_numpy()
    figure = Figure(figsize=(10, 4.4))
    left, right = figure.subfigures(1, 2, width_ratios=(1, 1.15))  # type: ignore[misc]
    heat = left.subplots()
    image = heatmap(heat, np.log10(rms.where(rms > 0)))
    hatched = np.argwhere(stalled.to_numpy() >= 0.5)
    for row, column in hatched:
        heat.add_patch(Rectangle((column - 0.5, row - 0.5), 1, 1, fill=False, hatch="////", edgecolor="white", lw=0))
    if len(hatched):
        heat.set_title("hatched: half the weights or more stalled")
    left.colorbar(image, ax=heat, label="log10 of the gradient's rms")

    shares, moves = right.subplots(2, 1, sharex=True)
    marker = "o" if len(steps) < 25 else None
    levels = readings[(readings.kind == "skip") & (readings.metric == "skip_share")]
    for level, rows in levels.groupby("block"):  # an encoder may have no features at level 1
        colour = LEVEL_COLOURS[int(level.removeprefix("level")) - 1]
        shares.plot(rows.step, rows.value, marker=marker, color=colour, label=level)
    zero_line(shares)
    shares.set_ylabel("skip share of the stage's gradient")
    if len(levels):
        legend_beside(shares)
    else:
        shares.set_title("not defined for this encoder")
    for number, block in enumerate(order):
        colour = matplotlib.colormaps["viridis"](number / len(order))
        values = ratio.loc[block].where(ratio.loc[block] > 0)
        moves.plot(steps, values, marker=marker, color=colour, linewidth=1.1, label=block)
    moves.set_yscale("log")
    smallest = np.nanmin(ratio.where(ratio > 0).to_numpy(), initial=1.0)
    if smallest < 2 * RESOLUTION:
        moves.axhspan(smallest / 2, RESOLUTION, color="red", alpha=0.15)
        moves.text(steps[0], RESOLUTION / 2, "stalled: below half a float32 step", va="top")
    moves.set_ylabel("update ratio, |Δw| / |w|")
    moves.set_xlabel("step")
    integer_ticks(moves, steps)
    legend_beside(moves, labelspacing=0.15)
    figure.savefig(path)


@styled
def gradient_routes(table: Path, path: Path) -> None:
    """Write, for each block of the encoder and for all, by which exit its gradient came, from a gradient_flow.csv.

    A bar a reading, stacked from the finest level to the bottleneck. A share below 0, of a term that points against the
    gradient, hangs below the axis; the shares of a bar sum to 1.
    """
    readings = _read_csv(table)
    shares = readings[(readings.kind == "exit") & readings.metric.str.startswith("share_")]
    blocks = list(dict.fromkeys(shares.block))
    columns = min(3, len(blocks))
    rows = -(-len(blocks) // columns)
    figure = Figure(figsize=(3 * columns, 0.5 + 2 * rows))
    axes = figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=True)
    for axis, block in zip(axes.flat, blocks, strict=False):
        of_block = shares[shares.block == block].pivot(index="step", columns="metric", values="value")
        stacked_shares(axis, of_block.rename(columns=lambda metric: metric.removeprefix("share_")))
        axis.set_title(block if block != blocks[-1] else f"{block}, all blocks")
    for axis in axes.flat[len(blocks) :]:
        axis.set_visible(False)
    figure.supxlabel("step")
    figure.supylabel("share of the gradient")
    shown = [name for name in EXIT_COLOURS if name != AUXILIARY or f"share_{name}" in set(shares.metric)]
    handles = [Rectangle((0, 0), 1, 1, color=EXIT_COLOURS[name], label=name) for name in shown]
    figure.legend(handles=handles, loc="outside upper center", ncols=len(handles))
    figure.savefig(path)


@styled
def gradient_short(table: Path, path: Path) -> None:
    """Write the identity share of each residual block by depth, from a gradient_flow.csv.

    The line is the last reading, the band reaches from the least to the greatest of all.
    """
    readings = _read_csv(table)
    shares = readings[(readings.kind == "short") & (readings.metric == "identity_share")]
    by_step = shares.pivot(index="step", columns="block", values="value")[list(dict.fromkeys(shares.block))]
    projected = readings[(readings.kind == "short") & (readings.metric == "projected") & (readings.value == 1)]
    figure = Figure(figsize=(max(4.5, 0.22 * by_step.shape[1] + 2), 3.2))
    axis = figure.subplots()
    last = by_step.iloc[-1]
    positions = np.arange(len(last))
    axis.fill_between(
        positions, by_step.min(), by_step.max(), color="C0", alpha=0.15, linewidth=0, label="all readings"
    )
    axis.plot(positions, last, color="C0", linewidth=1.2)
    through = np.array([block in set(projected.block) for block in last.index])
    axis.plot(positions[~through], last[~through], "o", color="C0", label="added as it is")
    if through.any():
        axis.plot(positions[through], last[through], "o", color="C0", mfc="white", label="added after a projection")
    zero_line(axis)
    axis.axhline(1, color=SOFT, linewidth=0.7, linestyle=":")
    axis.set_xticks(positions, list(last.index), rotation=60)
    axis.set_xlabel("residual block")
    axis.set_ylabel("identity share of the gradient")
    axis.set_title(f"step {by_step.index[-1]}")
    figure.legend(loc="outside lower center", ncols=3)
    figure.savefig(path)


@styled
def gradient_dense(table: Path, path: Path) -> None:
    """Write the reuse of every source by every later layer of each dense block, from the last of a gradient_flow.csv.

    Above by the gradient, below by the mean |w| of the weights that read it (Huang et al. 2017, Fig. 5).
    """
    readings = _read_csv(table)
    dense = readings[readings.kind == "dense"]
    step = dense.step.max()
    blocks = list(dict.fromkeys(dense.block))
    figure = Figure(figsize=(2.8 * len(blocks), 5.2))
    axes = figure.subplots(2, len(blocks), squeeze=False)
    for column, block in zip(axes.T, blocks, strict=True):
        rows = dense[(dense.step == step) & (dense.block == block)].set_index("metric").value
        for axis, name, title in zip(column, ("reuse", "weight"), ("share of the gradient", "mean |w|"), strict=True):
            image = reuse_map(axis, reuse_matrix(rows, name))
            axis.set_title(block)
            figure.colorbar(image, ax=axis, extend="max", aspect=28, label=title)
    figure.supxlabel(f"read by layer (last: the block's output), step {step}")
    figure.supylabel("output of layer (0: the block's input)")
    figure.savefig(path)


@styled
def compare_gradients(tables: dict[str, Path], path: Path) -> None:
    """Write, for several runs by their labels, the gradient of each block and its share of stalled weights.

    Lines are medians over the readings, bands reach from the least to the greatest value.
    """
    figure = Figure(figsize=(9, 3.4))
    gradient, still = figure.subplots(1, 2)
    for number, (label, table) in enumerate(tables.items()):
        readings = _read_csv(table)
        blocks = readings[readings.kind == "block"]
        order = list(dict.fromkeys(blocks.block))
        for axis, metric in ((gradient, "rms"), (still, "stalled")):
            values = blocks[blocks.metric == metric].pivot(index="step", columns="block", values="value")[order]
            if metric == "rms":
                values = values.where(values > 0)  # a gradient of zero has no place on a logarithmic axis: a gap
            low, middle, high = values.min(), values.median(), values.max()
            axis.plot(order, middle, marker="o", color=f"C{number}", label=label)
            axis.fill_between(order, low, high, color=f"C{number}", alpha=0.15, linewidth=0)
    gradient.set_yscale("log")
    gradient.set_ylabel("rms of the block's gradient")
    still.set_ylabel("share of stalled weights")
    still.set_ylim(-0.03, 1.03)
    for axis in (gradient, still):
        axis.tick_params(axis="x", rotation=60)
        axis.set_xlabel("block")
    legend_beside(still)
    figure.savefig(path)


@styled
def path_lengths(table: pd.DataFrame, path: Path) -> None:
    """Write the shares of the gradient by the number of residual branches on its way, with their intervals."""
    figure = Figure(figsize=(max(4.0, 0.22 * len(table) + 2), 3.0))
    axis = figure.subplots()
    errors = np.abs(table[["low", "high"]].to_numpy().T - table.share.to_numpy())
    axis.bar(table.residual_branches, table.share, width=0.8, yerr=errors, ecolor=INK, capsize=2)
    zero_line(axis)
    axis.locator_params(axis="x", integer=True)
    axis.set_xlabel("residual branches between an exit and the first block")
    axis.set_ylabel("share of the gradient")
    axis.grid(False, axis="x")
    figure.savefig(path)


def reuse_matrix(rows: pd.Series, name: str) -> pd.DataFrame:
    """Return a dense block's reuse_l_m or weight_l_m: a row for each source l, a column for each reader m, else nan."""
    import pandas as pd

    entries = [(*metric.split("_")[1:], value) for metric, value in rows.items() if metric.startswith(f"{name}_")]
    matrix = pd.DataFrame(entries, columns=["source", "reader", "value"])
    table = matrix.pivot_table(index="source", columns="reader", values="value")
    readers = sorted(table.columns, key=lambda reader: (reader == "out", reader.zfill(9)))
    return table.loc[sorted(table.index, key=int), readers]


def reuse_map(axis: Axes, table: pd.DataFrame) -> AxesImage:
    """Draw a matrix of `reuse_matrix`, in colours from 0 (or the least) to the most that a layer has.

    The block's output may have more: it gets the brightest colour then.
    """
    values = table.to_numpy()
    of_layers = table.drop(columns="out", errors="ignore").to_numpy()
    low, high = min(0.0, np.nanmin(of_layers)), np.nanmax(of_layers)
    axis.set_facecolor("#c9ced4")
    image = axis.imshow(values, aspect="auto", cmap="viridis", vmin=low, vmax=high, interpolation="nearest")
    for labels, set_ticks in ((table.index, axis.set_yticks), (table.columns, axis.set_xticks)):
        chosen = np.unique(np.linspace(0, len(labels) - 1, min(6, len(labels))).round().astype(int))
        set_ticks(chosen, [labels[position] for position in chosen])
    axis.grid(False)
    return image


def stacked_shares(axis: Axes, table: pd.DataFrame) -> None:
    """Draw the shares of the exits (columns) as a stack for each step (rows); what is negative hangs below the axis."""
    positions = np.arange(len(table))
    above, below = np.zeros(len(table)), np.zeros(len(table))
    for name in (name for name in EXIT_COLOURS if name in table):
        share = table[name].fillna(0).to_numpy()
        axis.bar(positions, share, 1.0, np.where(share > 0, above, below), color=EXIT_COLOURS[name])
        above += share.clip(min=0)
        below += share.clip(max=0)
    zero_line(axis)
    axis.axhline(1, color=SOFT, linewidth=0.7, linestyle=":")
    ticks = np.unique(np.linspace(0, len(table) - 1, min(5, len(table))).round().astype(int))
    axis.set_xticks(ticks, [str(table.index[tick]) for tick in ticks])
    axis.set_xlim(-0.5, len(table) - 0.5)
    axis.grid(False)


def heatmap(axis: Axes, table: pd.DataFrame, low: float | None = None, high: float | None = None) -> AxesImage:
    """Draw log10 of the gradient's rms, block (row) by step (column), in colours from `low` to `high`; nan is grey."""
    axis.set_facecolor("#c9ced4")
    image = axis.imshow(table.to_numpy(), aspect="auto", cmap="viridis", vmin=low, vmax=high, interpolation="nearest")
    axis.set_yticks(range(len(table)), list(table.index))
    ticks = np.unique(np.linspace(0, table.shape[1] - 1, min(5, table.shape[1])).round().astype(int))
    axis.set_xticks(ticks, [str(table.columns[tick]) for tick in ticks])
    axis.set_xlabel("step")
    axis.grid(False)
    return image


def _read_csv(path: Path) -> pd.DataFrame:
    import pandas as pd  # takes a second, for which the first training step needn't wait

    return pd.read_csv(path)
