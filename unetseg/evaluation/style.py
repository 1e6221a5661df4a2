"""The look of all figures: those of a run, of an evaluation, and of a report."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.rcsetup import cycler

from unetseg.names import LEVELS

INK, SOFT = "#1b1f24", "#59636e"
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#7f5539", "#000000")
"""Lines take them in this order: distinct for any colour vision (Okabe and Ito 2008, with brown for yellow)."""
LEVEL_COLOURS = [matplotlib.colormaps["plasma"](level / 4.5) for level in range(LEVELS)]
"""Of lines, finest level first; yellow, as in gradient_plots.EXIT_COLOURS, is too pale for a line."""
STYLE: Any = {
    **dict.fromkeys(("axes.edgecolor", "xtick.color", "ytick.color", "axes.labelcolor"), SOFT),
    **dict.fromkeys(("text.color", "axes.titlecolor"), INK),
    **dict.fromkeys(("axes.spines.top", "axes.spines.right", "legend.frameon"), False),
    **dict.fromkeys(("xtick.labelsize", "ytick.labelsize", "axes.labelsize", "legend.fontsize"), 7.5),
    **dict.fromkeys(("font.size", "figure.labelsize", "legend.title_fontsize"), 7.5),
    **dict.fromkeys(("figure.constrained_layout.use", "axes.grid", "axes.axisbelow"), True),
    "axes.titlesize": 8.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    **dict.fromkeys(("figure.constrained_layout.w_pad", "figure.constrained_layout.h_pad"), 0.07),  # inches
    "axes.linewidth": 0.7,
    "axes.prop_cycle": cycler(color=COLOURS),
    "figure.dpi": 150,
    "font.family": "DejaVu Sans",
    "grid.color": "#e4e8ec",
    "lines.linewidth": 1.5,
    "lines.markersize": 3.5,
}
styled = matplotlib.rc_context(STYLE)
"""Decorates a function that draws and saves a figure; matplotlib's own settings are as before when it is done."""


def legend_beside(axis: Axes, **options: Any) -> None:
    """Draw the legend of an axis at its right, where it hides no data."""
    axis.legend(loc="upper left", bbox_to_anchor=(1.02, 1.0), borderaxespad=0.0, handlelength=1.6, **options)


def zero_line(axis: Axes) -> None:
    """Draw the line at 0 between what is above and below it."""
    axis.axhline(0, color=SOFT, linewidth=0.7)


def integer_ticks(axis: Axes, values: Iterable[int]) -> None:
    """Put the ticks of x on whole numbers: on each value where there are few, as there is no step 0.5."""
    different = sorted(set(values))
    if len(different) < 6:
        axis.set_xticks(different)
    else:
        axis.locator_params(axis="x", integer=True, nbins=6)
