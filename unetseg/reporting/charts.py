"""The figures of a report; each panel is a PNG of its own, so that a phone can stack them. Plotting only."""

from __future__ import annotations

import io
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle

from unetseg.evaluation import gradient_plots
from unetseg.evaluation.style import COLOURS, INK, SOFT, integer_ticks, legend_beside, styled
from unetseg.names import shown
from unetseg.reporting.comparisons import TIMES, Pair, Plan
from unetseg.reporting.document import Panel
from unetseg.reporting.results import Setting

DPI = 250
"""Pages show panels at 100 to 125 pixels an inch; with twice as many they are sharp on screens of high resolution."""
NARROW, WIDE = (3.0, 2.3), (4.3, 2.5)
"""Sizes in inches of panels; a wide screen shows three narrow or two wide ones side by side."""


@styled
def lines(
    name: str,
    quantity: str,
    x: str,
    tables: dict[Setting, pd.DataFrame],
    *,
    title: str = "",
    limits: tuple[float, float] | None = None,
    wide: bool = False,
) -> Panel:
    """Return a line for each setting: the mean over its seeds (rows), in a band from the least to the greatest.

    Args:
        name: of the panel's file.
        quantity: the label of the y axis.
        x: the label of the x axis.
        tables: for each setting a row for each seed; the columns are epochs, steps, or names.
        title: what sets the panel apart from others beside it.
        limits: of the y axis, where panels are compared.
        wide: WIDE instead of NARROW.
    """
    figure, axis = _axes(title, WIDE if wide else NARROW)
    for setting, table in tables.items():
        ends = (table.min(), table.max()) if len(table) > 1 else None
        _line(axis, setting, table.mean(), ends)
    axis.set_xlabel(x)
    axis.set_ylabel(quantity)
    axis.set_ylim(limits)
    integer_ticks(axis, [value for table in tables.values() for value in table.columns])
    return _panel(figure, name, f"{title or quantity} by {x}")


@styled
def rates(name: str, quantity: str, x: str, tables: dict[Setting, pd.DataFrame]) -> Panel:
    """Return a line for each setting: the row "rate", in a band from "low" to "high"."""
    figure, axis = _axes("", WIDE)
    for setting, table in tables.items():
        _line(axis, setting, table.loc["rate"], (table.loc["low"], table.loc["high"]))
    axis.set_xlabel(x)
    axis.set_ylabel(quantity)
    axis.set_ylim(bottom=0)
    return _panel(figure, name, f"{quantity} by {x}")


@styled
def forest(name: str, title: str, pairs: Sequence[Pair]) -> Panel:
    """Return the differences with their intervals; a filled dot was shown, the grey range could not have been shown."""
    names = [textwrap.fill(pair.name, 32) for pair in pairs]
    high = 0.12 + 0.15 * max(name.count("\n") + 1 for name in names)
    figure, axis = _axes(title, (WIDE[0], 0.75 + high * len(pairs)))
    for row, pair in enumerate(pairs):
        result = pair.result
        if not pair.one_seed:
            least = pair.smallest.value
            axis.barh(row, 2 * least, left=-least, height=0.7, color="#eceff2")
        axis.plot([result.low, result.high], [row, row], color=INK, linewidth=1.3)
        axis.plot(result.difference, row, "o", color=INK, markerfacecolor=INK if pair.shown else "white", ms=4.5)
    axis.axvline(0, color=SOFT, linewidth=0.8)
    reach = 1.25 * max(abs(end) for pair in pairs for end in (pair.result.low, pair.result.high))
    axis.set_xlim((-reach, reach) if reach else None)  # with two seeds a grey bar may be much wider
    axis.set_yticks(range(len(pairs)), names)
    axis.set_ylim(len(pairs) - 0.5, -0.5)
    axis.tick_params(axis="y", length=0, labelcolor=INK)
    axis.spines["left"].set_visible(False)
    axis.locator_params(axis="x", nbins=6)
    axis.set_xlabel("difference of the means")
    axis.grid(False, axis="y")
    return _panel(figure, name, f"{title}: {', '.join(pair.name for pair in pairs)}")


@styled
def plan(name: str, title: str, plan: Plan, difference: float, unit: str) -> Panel:
    """Return the smallest difference that could be shown by number of seeds, with a line for each number of units."""
    figure, axis = _axes(title, WIDE)
    seeds = (*range(3, 11), 12, 15, 20, 30, 40, 50)
    low, high = (plan.curve(parts, seeds, 1) for parts in (plan.least, plan.most))
    axis.fill_between(seeds, low, high, color=INK, alpha=0.1, linewidth=0)
    for times, colour, style in zip(TIMES, (INK, "#0072b2", "#009e73"), ("-", "--", ":"), strict=True):
        label = f"{times * plan.units} {unit}s"
        axis.plot(seeds, plan.curve(plan.parts, seeds, times), style, color=colour, label=label)
    axis.axhline(difference, color=SOFT, linestyle=":", linewidth=1.2)
    axis.set_xscale("log")
    axis.set_xticks((3, 5, 10, 20, 50), ("3", "5", "10", "20", "50"))
    axis.minorticks_off()
    axis.set_ylim(0, 1.05 * max(4 * difference, plan.curve(plan.parts, (5,), 1)[0]))
    axis.set_xlabel("seeds")
    axis.set_ylabel("smallest difference")
    legend_beside(axis)
    return _panel(figure, name, f"{title}: smallest difference that could be shown, by seeds and {unit}s")


@styled
def heatmap(name: str, title: str, table: pd.DataFrame, low: float, high: float) -> Panel:
    """Return log10 of the gradient's rms, block (row) by step (column), in colours from `low` to `high`."""
    figure, axis = _axes(title, (NARROW[0], 2.5))
    image = gradient_plots.heatmap(axis, table, low, high)
    axis.tick_params(length=2)
    bar = figure.colorbar(image, ax=axis, pad=0.02, aspect=28, label="log10 of the rms")
    bar.outline.set_visible(False)  # type: ignore[operator]
    return _panel(figure, name, f"log10 of the gradient's rms, {title}: block by step")


@styled
def reuse(name: str, title: str, table: pd.DataFrame) -> Panel:
    """Return a matrix of a dense block: by source (row) and reader (column)."""
    figure, axis = _axes(title, (NARROW[0], 2.5))
    image = gradient_plots.reuse_map(axis, table)
    axis.set_xlabel("read by layer")
    axis.set_ylabel("output of layer")
    bar = figure.colorbar(image, ax=axis, pad=0.02, aspect=28, extend="max")
    bar.outline.set_visible(False)  # type: ignore[operator]
    return _panel(figure, name, f"{title}: by source and reader")


@styled
def exits(name: str, title: str, table: pd.DataFrame, limits: tuple[float, float]) -> Panel:
    """Return the shares of the exits (columns), stacked for each step (rows); `limits` of y are those of all panels."""
    figure, axis = _axes(title, NARROW)
    gradient_plots.stacked_shares(axis, table)
    axis.set_ylim(limits)
    axis.set_xlabel("step")
    axis.set_ylabel("share of the gradient")
    return _panel(figure, name, f"share of the gradient by exit, {title}, by step")


@styled
def colours_legend(name: str, colours: Mapping[str, str]) -> Panel:
    """Return colours, #rrggbb, beside what they stand for."""
    columns = min(6, len(colours))
    figure = Figure(figsize=(6.5, 0.1 + 0.2 * -(-len(colours) // columns)), dpi=DPI // 2)
    boxes = [Rectangle((0, 0), 1, 1, color=colour) for colour in colours.values()]
    figure.legend(boxes, [shown(word) for word in colours], loc="center left", ncols=columns)
    return replace(_panel(figure, name, f"Colours: {', '.join(colours)}"), colours=colours)


@styled
def scatter(name: str, title: str, x: str, table: pd.DataFrame, settings: Sequence[Setting]) -> Panel:
    """Return the IoU of each run against a column, in the settings' colours."""
    figure, axis = _axes("", WIDE)
    for setting in settings:
        rows = table[table.setting == setting.name]
        axis.scatter(rows[x], rows.iou, color=setting.colour, s=26, edgecolor="white", linewidth=0.6, zorder=2)
    axis.set_xlabel(title)
    axis.set_ylabel("test IoU over the set")
    return _panel(figure, name, f"test IoU of each run against {title}")


@styled
def search_history(name: str, trials: pd.DataFrame) -> Panel:
    """Return the validation IoU of a search's trials by their numbers, and the best finished so far as a line."""
    figure, axis = _axes("", WIDE)
    _trials(axis, trials.trial, trials)
    finished = trials[trials.state == "finished"]
    axis.step(finished.trial, finished["val/iou"].cummax(), where="post", color=INK, linewidth=1)
    axis.set_xlabel("trial")
    integer_ticks(axis, trials.trial)
    return _panel(figure, name, "validation IoU of each trial, and the best so far")


@styled
def over_option(name: str, key: str, trials: pd.DataFrame, *, log: bool) -> Panel:
    """Return the validation IoU of a search's trials over an option: a number, or one of some choices."""
    figure, axis = _axes("", NARROW)
    numbers = pd.to_numeric(trials[key], errors="coerce")
    if numbers.notna().all():
        _trials(axis, numbers, trials)
        axis.set_xscale("log" if log else "linear")
    else:
        choices = sorted(set(trials[key]))
        _trials(axis, trials[key].map(choices.index), trials)
        axis.set_xticks(range(len(choices)), [textwrap.fill(shown(choice), 14) for choice in choices])
        axis.set_xlim(-0.5, len(choices) - 0.5)
    axis.set_xlabel(shown(key))
    return _panel(figure, name, f"validation IoU of each trial by {key}")


def _trials(axis: Axes, places: pd.Series, trials: pd.DataFrame) -> None:
    """Draw a dot for each trial that has a validation IoU, filled where it is finished."""
    for finished, face in ((True, COLOURS[0]), (False, "white")):
        rows = (trials.state == "finished") == finished
        axis.scatter(
            places[rows], trials["val/iou"][rows], s=20, color=face, edgecolor=COLOURS[0], linewidth=0.8, zorder=2
        )
    axis.set_ylabel("validation IoU")


@styled
def legend(settings: Sequence[Setting]) -> Panel:
    """Return the settings' colours and names."""
    columns = min(4, len(settings))
    figure = Figure(figsize=(6.5, 0.1 + 0.2 * -(-len(settings) // columns)), dpi=DPI // 2)
    lines = [Line2D([], [], color=s.colour, linestyle=s.style) for s in settings]  # type: ignore[arg-type]
    figure.legend(lines, [s.name for s in settings], loc="center left", ncols=columns)
    panel = _panel(figure, "legend", f"Colours: {', '.join(s.name for s in settings)}")
    return replace(panel, colours={s.name: s.colour for s in settings})


def limits_of(tables: Iterable[pd.DataFrame]) -> tuple[float, float]:
    """Return limits of the y axis of panels that are compared: around all of their values, with some room."""
    values = np.concatenate([table.to_numpy(float).ravel() for table in tables])
    low, high = np.nanmin(values), np.nanmax(values)
    room = 0.05 * (high - low) + 0.005
    return low - room, high + room


def _axes(title: str, size: tuple[float, float]) -> tuple[Figure, Axes]:
    figure = Figure(figsize=size, dpi=DPI)
    axis = figure.subplots()
    axis.set_title(textwrap.fill(title, int(13 * size[0])))
    return figure, axis


def _line(axis: Axes, setting: Setting, values: pd.Series, ends: tuple[pd.Series, pd.Series] | None) -> None:
    """Draw values by their index in the setting's colour, in a band between two ends."""
    marker = "o" if len(values) < 25 else None
    axis.plot(values.index, values, setting.style, color=setting.colour, marker=marker, markersize=2.5)
    if ends:
        axis.fill_between(values.index, *ends, color=setting.colour, alpha=0.16, linewidth=0)


def _panel(figure: Figure, name: str, alt: str) -> Panel:
    content = io.BytesIO()
    figure.savefig(content, format="png", metadata={"Software": None})
    return Panel(name, content.getvalue(), alt)
