"""Tables of all settings for the README and the laboratory, of the same numbers as the claims."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from book import pages
from book.cells import ROOT, Cell, Record
from book.literature import LESIONS, SCORES, SETTINGS, Contrast
from unetseg.evaluation.statistics import holm, seed_interval
from unetseg.evaluation.style import COLOURS, INK, SOFT, styled

USUAL = "concat"
"""The setting that the others are held against."""
README = ("concat", "add", "none")
DESIGNS = ("add", "attention", "nested", "full", "respath", "permuted", "placebo", "none")
NESTED_SAID = 0.039
"""U-Net++'s mean gain in IoU over a U-Net, with deep supervision (Zhou et al. 2018)."""
WORDS = ("IoU", "Boundary IoU")
"""Those for SCORES."""


def compared(known: dict[Cell, Record], bench: tuple[str, int], settings: Sequence[str] = tuple(SETTINGS)) -> str:
    """Return a table of settings on a bench: the IoU, and the differences from concat, bold where shown.

    Holm's correction is over the table.
    """
    own = on_bench(known, bench)
    there = [setting for setting in settings if any(cell.setting == setting for cell in own)]
    found = from_usual(own, bench, there)
    unit = pages.BENCHES[bench[0]].unit
    titles = ("IoU over the set (least to greatest seed)", *(f"{s} by {unit} − {USUAL}'s [95 %]" for s in WORDS))
    lines = [f"| {pages.titled(bench)} | M weights | {' | '.join(titles)} |", "| --- | ---: | --- | --- | --- |"]
    for setting in there:
        records = [record for cell, record in own.items() if cell.setting == setting]
        sets = [record["iou_of_the_set"] for record in records]
        weights = f"{records[0]['parameters'] / 1e6:.2f}"
        score = f"{np.mean(sets):.3f} ({min(sets):.3f} to {max(sets):.3f})"
        differences = (pages.interval(found[setting, s]) if (setting, s) in found else "" for s in SCORES)
        lines.append(f"| {' | '.join((setting, weights, score, *differences))} |")
    return "\n".join(lines)


def on_bench(known: dict[Cell, Record], bench: tuple[str, int]) -> dict[Cell, Record]:
    """Return the records of one bench."""
    return {cell: record for cell, record in known.items() if (cell.bench, cell.size) == bench}


def from_usual(
    own: dict[Cell, Record], bench: tuple[str, int], settings: Sequence[str]
) -> dict[tuple[str, str], pages.Result]:
    """Return each setting's difference from concat in each score, with Holm's correction over all of them."""
    found = {
        (setting, score): replace(result, bench=bench[0], size=bench[1])
        for setting in settings
        for score in SCORES
        if setting != USUAL and (result := pages.contrasted(Contrast(score, setting, USUAL), own))
    }
    enough = [key for key, result in found.items() if result.seeds >= pages.SEEDS]
    for key, p in zip(enough, holm([found[key].p for key in enough]), strict=True):
        found[key] = replace(found[key], p=p)
    return found


@styled
def draw_designs(known: dict[Cell, Record], path: Path) -> None:
    """Write the designs' differences from concat in IoU, at their own size and at concat's; a panel a bench.

    The benches are those on which each design has been trained. Filled where shown after Holm's correction over all
    settings of the bench, as in its table.
    """
    benches = [
        bench for bench in pages.benches_of(known) if {*DESIGNS} <= {cell.setting for cell in on_bench(known, bench)}
    ]
    figure = Figure(figsize=(7.2, 0.5 + 2.4 * -(-len(benches) // 2)))
    panels = [*figure.subplots(-(-len(benches) // 2), 2, sharey=True, squeeze=False).flat]
    for panel, bench in zip(panels, benches, strict=False):
        found = from_usual(on_bench(known, bench), bench, [*SETTINGS])
        for place, design in enumerate(reversed(DESIGNS)):
            for kind, colour, shift in zip((design, f"{design} matched"), COLOURS, (0.16, -0.16), strict=False):
                if (own := found.get((kind, SCORES[0]))) is None:
                    continue
                style = {"color": colour, "markerfacecolor": colour if own.verdict in pages.SHOWN else "none"}
                panel.errorbar(own.difference, place + shift, xerr=own.half_width, fmt="o", capsize=2, **style)
            if design == "nested":
                panel.plot(NESTED_SAID, place, marker="x", color=INK, linestyle="none", markersize=5)
        panel.axvline(0, color=SOFT, linewidth=0.7)
        panel.set_yticks(range(len(DESIGNS)), DESIGNS[::-1])
        panel.set_ylim(-0.6, len(DESIGNS) - 0.4)
        panel.grid(False, axis="y")
        panel.locator_params(axis="x", nbins=6)
        panel.set_title(textwrap.fill(pages.titled(bench), 40), loc="right")
        panel.set_xlabel(f"IoU by {pages.BENCHES[bench[0]].unit} − concat's", loc="right")
    for panel in panels[len(benches) :]:
        panel.remove()
    marks = [
        Line2D([], [], color=COLOURS[0], marker="o", markerfacecolor="none", label="at its own size"),
        Line2D([], [], color=COLOURS[1], marker="o", markerfacecolor="none", label="matched: at concat's size"),
        Line2D([], [], color=INK, marker="x", markersize=5, linestyle="none", label="told of U-Net++"),
    ]
    figure.legend(handles=marks, loc="outside lower center", ncols=3)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)


def lesions(known: dict[Cell, Record], benches: Sequence[tuple[str, int]]) -> str:
    """Return a table of the IoU that concat loses where a level's long skip is cut, with Student's intervals.

    Benches on which none was cut are left out.
    """
    usual = {cell: record for cell, record in known.items() if cell.setting == USUAL}
    cut = {(cell.bench, cell.size) for cell, record in usual.items() if {*LESIONS} & record["readings"].keys()}
    benches = [bench for bench in benches if bench in cut]
    titles = (f"IoU lost, {pages.titled(bench)}" for bench in benches)
    lines = [f"| cut by the mean | {' | '.join(titles)} |", f"| --- |{' --- |' * len(benches)}"]
    names = ("level 1 (finest)", "level 2", "level 3", "level 4 (coarsest)", "all")
    for name, reading in zip(names, (*LESIONS[1:], LESIONS[0]), strict=True):
        texts = []
        for bench in benches:
            own = [record for cell, record in usual.items() if (cell.bench, cell.size) == bench]
            values = [record["readings"][reading] for record in own if reading in record["readings"]]
            ends = seed_interval(values) if len(values) > 1 else None
            texts.append(f"{np.mean(values):+.3f} [{ends[0]:+.3f}, {ends[1]:+.3f}]" if ends else "–")
        lines.append(f"| {name} | {' | '.join(texts)} |")
    return "\n".join(lines)


def write(known: dict[Cell, Record], root: Path = ROOT) -> None:
    """Write the pages of the claims, and the tables of the README and the laboratory."""
    docs, benches = root / "docs", pages.benches_of(known)
    pages.write(known, docs)
    pages.fill(root / "README.md", "skips", compared(known, ("pets", 64), README))
    pages.fill(docs / "laboratory.md", "settings", "\n\n".join(compared(known, bench) for bench in benches))
    draw_designs(known, docs / "images/claims/designs.png")
    pages.fill(docs / "laboratory.md", "lesions", lesions(known, benches))
