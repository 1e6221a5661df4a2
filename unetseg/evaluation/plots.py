"""Figures of a run. Plotting only: the numbers are measured elsewhere."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.patches import Rectangle

from unetseg.evaluation.overlays import Sample, errors, overlay
from unetseg.names import AUXILIARY, EXITS

if TYPE_CHECKING:
    import pandas as pd

RESOLUTION = 2.0**-25
"""Half the relative spacing of float32 numbers: a smaller update doesn't change a weight."""


def predictions(samples: Sequence[Sample], captions: Sequence[str], path: Path) -> None:
    """Write a row for each sample: its picture, truth, prediction and errors, with a caption at the left."""
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
    table = _read_csv(metrics)
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
    figure = Figure(figsize=(9, 4.2), dpi=110, layout="constrained")
    left, right = figure.subfigures(1, 2, width_ratios=(1.15, 1))  # type: ignore[misc]
    heat = left.subplots()
    image = heatmap(heat, np.log10(rms.where(rms > 0)))
    hatched = np.argwhere(stalled.to_numpy() >= 0.5)
    for row, column in hatched:
        heat.add_patch(Rectangle((column - 0.5, row - 0.5), 1, 1, fill=False, hatch="////", edgecolor="white", lw=0))
    heat.tick_params(labelsize=8)
    note = " (hatched: half the weights stalled)" if len(hatched) else ""
    heat.set_title(f"gradient, log10 rms{note}", fontsize=9)
    left.colorbar(image, ax=heat).ax.tick_params(labelsize=8)

    shares, moves = right.subplots(2, 1, sharex=True)
    levels = readings[(readings.kind == "skip") & (readings.metric == "skip_share")]
    for number, (level, rows) in enumerate(levels.groupby("block")):
        colour = matplotlib.colormaps["plasma"](number / 4.5)
        shares.plot(rows.step, rows.value, color=colour, label=level, linewidth=1.4)
    shares.axhline(0, color="grey", linewidth=0.6)
    shares.set_title("skip share of the encoder's gradient", fontsize=9)
    shares.legend(fontsize=7, ncols=2)
    for number, block in enumerate(order):
        colour = matplotlib.colormaps["viridis"](number / len(order))
        moves.plot(steps, ratio.loc[block].where(ratio.loc[block] > 0), color=colour, linewidth=1.1, label=block)
    moves.set_yscale("log")
    smallest = np.nanmin(ratio.where(ratio > 0).to_numpy(), initial=1.0)
    if smallest < 2 * RESOLUTION:
        moves.axhspan(smallest / 2, RESOLUTION, color="red", alpha=0.15)
        moves.text(steps[0], RESOLUTION / 2, "stalled: below half a float32 step", fontsize=7, va="top")
    moves.set_title("update ratio, first block dark, head bright", fontsize=9)
    moves.set_xlabel("step", fontsize=8)
    for axis in (shares, moves):
        axis.tick_params(labelsize=8)
        axis.grid(alpha=0.3)
    figure.savefig(path)


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
    figure = Figure(figsize=(3 * columns, 0.5 + 2 * rows), dpi=110, layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=True)
    for axis, block in zip(axes.flat, blocks, strict=False):
        of_block = shares[shares.block == block].pivot(index="step", columns="metric", values="value")
        stacked_shares(axis, of_block.rename(columns=lambda metric: metric.removeprefix("share_")))
        axis.set_title(block if block != blocks[-1] else f"{block}, all blocks", fontsize=9)
    for axis in axes.flat[len(blocks) :]:
        axis.set_visible(False)
    figure.supxlabel("step", fontsize=8)
    figure.supylabel("share of the gradient", fontsize=8)
    shown = [name for name in EXIT_COLOURS if name != AUXILIARY or f"share_{name}" in set(shares.metric)]
    handles = [Rectangle((0, 0), 1, 1, color=EXIT_COLOURS[name], label=name) for name in shown]
    figure.legend(handles=handles, loc="outside upper center", ncols=len(handles), fontsize=7.5, frameon=False)
    figure.savefig(path)


def gradient_short(table: Path, path: Path) -> None:
    """Write the identity share of each residual block by depth, from a gradient_flow.csv.

    The line is the last reading, the band reaches from the least to the greatest of all.
    """
    readings = _read_csv(table)
    shares = readings[(readings.kind == "short") & (readings.metric == "identity_share")]
    by_step = shares.pivot(index="step", columns="block", values="value")[list(dict.fromkeys(shares.block))]
    projected = readings[(readings.kind == "short") & (readings.metric == "projected") & (readings.value == 1)]
    figure = Figure(figsize=(max(4.5, 0.22 * by_step.shape[1] + 2), 3.2), dpi=110, layout="constrained")
    axis = figure.subplots()
    last = by_step.iloc[-1]
    positions = np.arange(len(last))
    axis.fill_between(positions, by_step.min(), by_step.max(), color="C0", alpha=0.15, linewidth=0)
    axis.plot(positions, last, color="C0", linewidth=1.2)
    through = np.array([block in set(projected.block) for block in last.index])
    axis.plot(positions[~through], last[~through], "o", color="C0", label="added as it is")
    if through.any():
        axis.plot(positions[through], last[through], "o", color="C0", mfc="white", label="added after a projection")
    axis.axhline(0, color="grey", linewidth=0.6)
    axis.axhline(1, color="grey", linewidth=0.6, linestyle=":")
    axis.set_xticks(positions, list(last.index), rotation=60, fontsize=7)
    axis.tick_params(axis="y", labelsize=8)
    axis.set_title(f"share of a block's gradient that came by its addition, step {by_step.index[-1]}", fontsize=9)
    axis.grid(alpha=0.3)
    figure.legend(loc="outside lower center", ncols=2, fontsize=7, frameon=False)
    figure.savefig(path)


def gradient_dense(table: Path, path: Path) -> None:
    """Write the reuse of every source by every later layer of each dense block, from the last of a gradient_flow.csv.

    Above by the gradient, below by the mean |w| of the weights that read it (Huang et al. 2017, Fig. 5).
    """
    readings = _read_csv(table)
    dense = readings[readings.kind == "dense"]
    step = dense.step.max()
    blocks = list(dict.fromkeys(dense.block))
    figure = Figure(figsize=(2.8 * len(blocks), 5.2), dpi=110, layout="constrained")
    axes = figure.subplots(2, len(blocks), squeeze=False)
    for column, block in zip(axes.T, blocks, strict=True):
        rows = dense[(dense.step == step) & (dense.block == block)].set_index("metric").value
        for axis, name, title in zip(column, ("reuse", "weight"), ("share of the gradient", "mean |w|"), strict=True):
            image = reuse_map(axis, reuse_matrix(rows, name))
            axis.set_title(f"{block}: {title}", fontsize=9)
            figure.colorbar(image, ax=axis, extend="max", aspect=28).ax.tick_params(labelsize=7)
    figure.supxlabel(f"read by layer (last: the block's output), step {step}", fontsize=8)
    figure.supylabel("output of layer (0: the block's input)", fontsize=8)
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
    axis.tick_params(labelsize=7)
    return image


EXIT_COLOURS = dict(zip(EXITS, ("#fde725", "#5ec962", "#21918c", "#3b528b", "#9aa3ad"), strict=True))
EXIT_COLOURS[AUXILIARY] = "#d55e00"
"""From the finest level to the bottleneck, then the auxiliary heads."""


def stacked_shares(axis: Axes, table: pd.DataFrame) -> None:
    """Draw the shares of the exits (columns) as a stack for each step (rows); what is negative hangs below the axis."""
    positions = np.arange(len(table))
    above, below = np.zeros(len(table)), np.zeros(len(table))
    for name in (name for name in EXIT_COLOURS if name in table):
        share = table[name].fillna(0).to_numpy()
        axis.bar(positions, share, 1.0, np.where(share > 0, above, below), color=EXIT_COLOURS[name])
        above += share.clip(min=0)
        below += share.clip(max=0)
    axis.axhline(0, color="#59636e", linewidth=0.7)
    axis.axhline(1, color="#59636e", linewidth=0.7, linestyle=":")
    ticks = np.unique(np.linspace(0, len(table) - 1, min(5, len(table))).round().astype(int))
    axis.set_xticks(ticks, [str(table.index[tick]) for tick in ticks])
    axis.set_xlim(-0.5, len(table) - 0.5)
    axis.tick_params(labelsize=8)


def heatmap(axis: Axes, table: pd.DataFrame, low: float | None = None, high: float | None = None) -> AxesImage:
    """Draw log10 of the gradient's rms, block (row) by step (column), in colours from `low` to `high`; nan is grey."""
    axis.set_facecolor("#c9ced4")
    image = axis.imshow(table.to_numpy(), aspect="auto", cmap="viridis", vmin=low, vmax=high, interpolation="nearest")
    axis.set_yticks(range(len(table)), list(table.index))
    ticks = np.unique(np.linspace(0, table.shape[1] - 1, min(5, table.shape[1])).round().astype(int))
    axis.set_xticks(ticks, [str(table.columns[tick]) for tick in ticks])
    axis.set_xlabel("step")
    return image


def compare_gradients(tables: dict[str, Path], path: Path) -> None:
    """Write, for several runs by their labels, the gradient of each block and its share of stalled weights.

    Lines are medians over the readings, bands reach from the least to the greatest value.
    """
    figure = Figure(figsize=(9, 3.4), dpi=110, layout="constrained")
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
            axis.plot(order, middle, marker=".", color=f"C{number}", label=label)
            axis.fill_between(order, low, high, color=f"C{number}", alpha=0.15, linewidth=0)
    gradient.set_yscale("log")
    gradient.set_title("gradient of each block: rms", fontsize=9)
    still.set_title("share of stalled weights", fontsize=9)
    still.set_ylim(-0.03, 1.03)
    for axis in (gradient, still):
        axis.tick_params(axis="x", rotation=60, labelsize=8)
        axis.tick_params(axis="y", labelsize=8)
        axis.grid(alpha=0.3)
    gradient.legend(fontsize=8)
    figure.savefig(path)


def edge_distance(tables: dict[str, pd.DataFrame], path: Path) -> None:
    """Write the error rate by distance to the mask's edge: for each table by its label a line, in its interval."""
    figure = Figure(figsize=(5, 3.2), dpi=110, layout="constrained")
    _error_rates(figure.subplots(), tables)
    figure.savefig(path)


def lesions(tables: dict[str, pd.DataFrame], path: Path) -> None:
    """Write the figure of evaluate's lesions: the Shapley values of each level, and the errors of each cut."""
    figure = Figure(figsize=(11, 3.4), dpi=110, layout="constrained")
    iou, boundary, where = figure.subplots(1, 3)
    values, rates = tables["shapley"], tables["lesion_edge_distance"]
    cuts = list(values.cut.unique())
    for axis, name, title in ((iou, "iou", "IoU"), (boundary, "boundary_iou", "Boundary IoU")):
        for number, cut in enumerate(cuts):
            rows = values[values.cut == cut]
            errors = np.abs(rows[[f"{name}_low", f"{name}_high"]].to_numpy().T - rows[name].to_numpy())
            positions = np.arange(len(rows)) + 0.27 * (number - 1)
            axis.bar(positions, rows[name], width=0.25, yerr=errors, capsize=2, label=cut, color=f"C{number}")
        axis.set_xticks(np.arange(len(rows)), [f"level {level}" for level in rows.level], fontsize=8)
        axis.axhline(0, color="grey", linewidth=0.6)
        axis.set_title(f"Shapley value of each long skip, {title}", fontsize=9)
        axis.tick_params(labelsize=8)
        axis.grid(axis="y", alpha=0.3)
    iou.legend(title="cut by", fontsize=7, title_fontsize=7)
    levels = [str(level) for level in rows.level]
    lines = {"intact": rates[rates.cut == "intact"]}
    for cut_levels in [*levels, "+".join(levels)]:
        label = f"level {cut_levels} cut" if cut_levels in levels else "all cut"
        lines[label] = rates[(rates.cut == "mean") & (rates.levels == cut_levels)]
    _error_rates(where, lines)
    where.set_title("errors, cut by the mean", fontsize=9)
    figure.savefig(path)


def path_lengths(table: pd.DataFrame, path: Path) -> None:
    """Write the shares of the gradient by the number of residual branches on its way, with their intervals."""
    figure = Figure(figsize=(max(4.0, 0.22 * len(table) + 2), 3.0), dpi=110, layout="constrained")
    axis = figure.subplots()
    errors = np.abs(table[["low", "high"]].to_numpy().T - table.share.to_numpy())
    axis.bar(table.residual_branches, table.share, width=0.8, yerr=errors, capsize=2)
    axis.axhline(0, color="grey", linewidth=0.6)
    axis.locator_params(axis="x", integer=True)
    axis.set_xlabel("residual branches between an exit and the first block", fontsize=8)
    axis.set_title("share of the gradient by the length of its paths", fontsize=9)
    axis.tick_params(labelsize=8)
    axis.grid(axis="y", alpha=0.3)
    figure.savefig(path)


def _error_rates(axis: Axes, tables: dict[str, pd.DataFrame]) -> None:
    for label, table in tables.items():
        (line,) = axis.plot(range(len(table)), table.error_rate, marker=".", linewidth=1.2, label=label)
        ends = (table.error_rate_low, table.error_rate_high)
        axis.fill_between(range(len(table)), *ends, color=line.get_color(), alpha=0.12, linewidth=0)
    names = band_labels(zip(table.from_px, table.to_px, strict=True))
    axis.set_xticks(range(len(names)), names, fontsize=8)
    axis.set_xlabel("pixels to the mask's edge", fontsize=8)
    axis.set_ylabel("share of wrong pixels", fontsize=8)
    axis.set_ylim(bottom=0)
    axis.tick_params(labelsize=8)
    axis.grid(alpha=0.3)
    if len(tables) > 1:
        axis.legend(fontsize=7)


def band_labels(bands: Iterable[tuple[float, float]]) -> list[str]:
    """Return the names of bands of distances in pixels, by the first and last distance: 1, 2, 3–4, ... ≥ 33."""
    ends = [(f"{low:.0f}", f"{high:.0f}") for low, high in bands]
    return [f"≥ {low}" if high == "inf" else low if low == high else f"{low}–{high}" for low, high in ends]


def _read_csv(path: Path) -> pd.DataFrame:
    import pandas as pd  # takes a second, for which the first training step needn't wait

    return pd.read_csv(path)
