"""Tables of all settings for the README and the laboratory, of the same numbers as the claims."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from book import pages
from book.cells import ROOT, Cell, Record
from book.literature import LESIONS, SCORES, SETTINGS, Contrast
from unetseg.evaluation.statistics import holm, seed_interval

USUAL = "concat"
"""The setting that the others are held against."""
README = ("concat", "add", "none")
WORDS = ("IoU", "Boundary IoU")
"""Those for SCORES."""


def compared(known: dict[Cell, Record], bench: tuple[str, int], settings: Sequence[str] = tuple(SETTINGS)) -> str:
    """Return a table of settings on a bench: the IoU, and the differences from concat, bold where shown.

    Holm's correction is over the table.
    """
    own = {cell: record for cell, record in known.items() if (cell.bench, cell.size) == bench}
    there = [setting for setting in settings if any(cell.setting == setting for cell in own)]
    found = {
        (setting, score): replace(result, bench=bench[0], size=bench[1])
        for setting in there
        for score in SCORES
        if setting != USUAL and (result := pages.contrasted(Contrast(score, setting, USUAL), own))
    }
    enough = [key for key, result in found.items() if result.seeds >= pages.SEEDS]
    for key, p in zip(enough, holm([found[key].p for key in enough]), strict=True):
        found[key] = replace(found[key], p=p)
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
    pages.fill(docs / "laboratory.md", "lesions", lesions(known, benches))
