"""Writes the pages of the book: a table of all claims, and for each its numbers, its verdict and its figure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from book.cells import BENCHES, ROOT, Cell, Record
from book.literature import CLAIMS, SCORES, Claim, Contrast
from unetseg.evaluation.statistics import LEVEL, Spread, holm, holm_levels, spread_of
from unetseg.evaluation.style import COLOURS, SOFT, styled
from unetseg.names import counted

DOCS = ROOT / "docs"
HELD, CONTRADICTED, NOT_SHOWN, TOO_FEW = "held", "contradicted", "not shown", "too few seeds yet"
SHOWN = (HELD, CONTRADICTED)
SEEDS = 3
"""With fewer of them a claim has no verdict."""


@dataclass(frozen=True)
class Result:
    """A contrast on a bench."""

    bench: str
    size: int
    contrast: Contrast
    difference: float
    half_width: float
    spread: Spread
    seeds: int
    units: str
    """Of the test set, by which a score is told; empty for a reading, which is one number a training."""
    p: float
    """With Holm's correction over the contrasts of the claim; nan with one seed."""
    level: float = 1 - LEVEL

    @property
    def verdict(self) -> str:
        """Return held, contradicted or not shown, or that there are too few seeds to tell."""
        if self.seeds < SEEDS:
            return TOO_FEW
        if not self.p < 1 - LEVEL:
            return NOT_SHOWN
        return HELD if self.difference > 0 else CONTRADICTED

    @property
    def smallest(self) -> float:
        """Return the difference that would have been shown with a probability of 80 %."""
        return self.spread.detectable(self.level) if self.seeds > 1 else math.nan


def results(claim: Claim, known: dict[Cell, Record]) -> list[Result]:
    """Return what is known of each contrast on each bench, by the seeds that both settings have."""
    found = []
    for bench, size in sorted(
        {(cell.bench, cell.size) for cell in known}, key=lambda own: ([*BENCHES].index(own[0]), own[1])
    ):
        for contrast in claim.contrasts:
            own = _result(contrast, {cell: r for cell, r in known.items() if (cell.bench, cell.size) == (bench, size)})
            if own:
                found.append(replace(own, bench=bench, size=size))
    tested = [number for number, result in enumerate(found) if result.seeds > 1]
    values = [found[number].p for number in tested]
    for number, p, level in zip(tested, holm(values), holm_levels(values), strict=True):
        found[number] = replace(found[number], p=p, level=level)
    return found


def _result(contrast: Contrast, known: dict[Cell, Record]) -> Result | None:
    """Return a contrast on one bench before any correction; None where no seed is known of both settings."""

    def values(setting: str | float) -> dict[int, Record]:
        has = contrast.reading if contrast.reading in SCORES else None
        return {
            cell.seed: record
            for cell, record in known.items()
            if cell.setting == setting and (has or math.isfinite(record["readings"].get(contrast.reading, math.nan)))
        }

    more = values(contrast.more)
    less = more if isinstance(contrast.less, float) else values(contrast.less)
    seeds = sorted(more.keys() & less.keys())
    if not seeds:
        return None
    units = {record["units"] for own in (more, less) for record in (own[seed] for seed in seeds)}
    if len(units) > 1:
        raise ValueError(f"{contrast}: the cells were tested on different pictures: {', '.join(sorted(units))}")
    if contrast.reading in SCORES:
        one, two = (np.array([own[seed][contrast.reading] for seed in seeds]) for own in (more, less))
        differences, of = one - two, " ".join(units.pop().split()[:2])
        spread = spread_of(differences)
    else:
        one = np.array([more[seed]["readings"][contrast.reading] for seed in seeds])
        two = (
            contrast.less
            if isinstance(contrast.less, float)
            else [less[s]["readings"][contrast.reading] for s in seeds]
        )
        differences, of = one - np.array(two), ""
        variance = differences.var(ddof=1) / len(seeds) if len(seeds) > 1 else math.nan
        spread = Spread(variance, len(seeds) - 1, 0.0, 1, 0.0)
    mean, known_spread = float(differences.mean()), len(seeds) > 1
    half = float(spread.half_width(1 - LEVEL)) if known_spread else math.nan
    p = spread.p(mean) if known_spread else math.nan
    return Result("", 0, contrast, mean, half, spread, len(seeds), of, p)


def verdict(claim: Claim, found: Sequence[Result]) -> str:
    """Return the verdict on a claim: that of all its contrasts, where they agree."""
    if not found:
        return "not measured yet"
    enough = [result for result in found if result.seeds >= SEEDS]
    if not enough:
        return TOO_FEW
    if {*claim.contrasts} - {result.contrast for result in enough}:
        return "not all measured yet"
    seen = {result.verdict for result in enough}
    if len(seen) == 1:
        return seen.pop()
    if {HELD, CONTRADICTED} <= seen:
        return "held in part, contradicted in part"
    return f"{HELD if HELD in seen else CONTRADICTED} in part"


def index(known: dict[Cell, Record]) -> str:
    """Return the table of the claims that have been measured, and a sentence on the others."""
    lines = ["| claim | source | verdict, at this scale | seeds | benches |", "| --- | --- | --- | --- | --- |"]
    absent = []
    for claim in CLAIMS:
        found = results(claim, known)
        if not found:
            absent.append(claim.title)
            continue
        least, most = min(result.seeds for result in found), max(result.seeds for result in found)
        benches = ", ".join(dict.fromkeys(f"{BENCHES[r.bench].title}, {r.size} px" for r in found))
        text = str(least) if least == most else f"{least} to {most}"
        title = f"[{claim.title}](claims/{claim.name}.md)"
        lines.append(f"| {' | '.join((title, claim.source, verdict(claim, found), text, benches))} |")
    table = "\n".join(lines) if len(lines) > 2 else ""
    return "\n\n".join(filter(None, (table, f"Not measured yet: {'; '.join(absent)}." if absent else "")))


def page(claim: Claim, found: Sequence[Result], known: dict[Cell, Record]) -> str:
    """Return the page of a claim."""
    rows = [
        "| bench | difference | of | mean [95 %] | p (Holm) | seeds | would have been shown from | verdict |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for own in found:
        bench = f"{BENCHES[own.bench].title}, {own.size} px"
        rows.append(
            f"| {bench} | {name(own.contrast)} | {reading(own)} | {interval(own)} | {p_value(own.p)} | {own.seeds} | "
            f"{'–' if math.isnan(own.smallest) else f'{own.smallest:.3f}'} | {own.verdict} |"
        )
    used = cells_of(claim, known)
    minutes = sum(known[cell]["minutes"] for cell in used)
    lines = [
        f"# {claim.title}",
        "",
        f"{claim.said} ({claim.source})",
        "",
        f"**Verdict: {verdict(claim, found)}**, at this scale.",
        "",
        f"![The differences with their intervals](../images/claims/{claim.name}.png){{ width=560 }}",
        "",
        *rows,
        "",
        *([claim.remark, ""] if claim.remark else []),
        f"*`python scripts/claims.py WORK --pets PETS --sets SETS --only {claim.name}`; the experiment by itself: "
        f"`experiment={claim.experiment}`. {counted(len(used), 'training')}, which other claims share; "
        f"{minutes:.0f} minutes of wall time on a shared machine.*",
    ]
    return "\n".join(lines) + "\n"


def cells_of(claim: Claim, known: dict[Cell, Record]) -> list[Cell]:
    """Return the cells that a claim's numbers come from."""
    settings = {s for contrast in claim.contrasts for s in (contrast.more, contrast.less) if isinstance(s, str)}
    return [cell for cell in known if cell.setting in settings]


def name(contrast: Contrast) -> str:
    """Return a difference as a formula of names."""
    if contrast.less == 0.0:
        return contrast.more
    return f"{contrast.more} − {contrast.less}"


def reading(own: Result) -> str:
    """Return what is compared, in words."""
    titles = {"iou": "IoU", "boundary_iou": "Boundary IoU"}
    unit = own.units.split()[-1] if own.units else ""
    return f"{titles[own.contrast.reading]} by {unit[:-1]}" if unit else f"`{own.contrast.reading}`"


def interval(own: Result) -> str:
    """Return a difference with its interval; bold where something was shown."""
    if math.isnan(own.half_width):
        return f"{own.difference:+.3f}"
    text = f"{own.difference:+.3f} [{own.difference - own.half_width:+.3f}, {own.difference + own.half_width:+.3f}]"
    return f"**{text}**" if own.verdict in SHOWN else text


def p_value(p: float) -> str:
    """Return a p value in words."""
    return "–" if math.isnan(p) else "< 0.001" if p < 0.001 else f"{p:.3f}"


@styled
def draw(found: Sequence[Result], path: Path) -> None:
    """Write the differences with their intervals; filled where something was shown."""
    benches = list(dict.fromkeys((own.bench, own.size) for own in found))
    titles = {bench: f"{BENCHES[bench[0]].title}, {bench[1]} px" for bench in benches}
    figure = Figure(figsize=(6.4, 0.5 + 0.27 * len(found) + 0.14 * len(benches)))
    axis = figure.subplots()
    for place, own in enumerate(reversed(found)):
        colour = COLOURS[benches.index((own.bench, own.size))]
        bar = None if math.isnan(own.half_width) else own.half_width
        filled = colour if own.verdict in SHOWN else "none"
        axis.errorbar(own.difference, place, xerr=bar, fmt="o", color=colour, markerfacecolor=filled, capsize=2.5)
    axis.axvline(0, color=SOFT, linewidth=0.7)
    axis.set_yticks(range(len(found)), [f"{name(o.contrast)}, {reading(o).strip('`')}" for o in reversed(found)])
    axis.set_ylim(-0.6, len(found) - 0.4)
    shown = "difference with its 95 % interval" if any(own.seeds > 1 for own in found) else "difference in one seed"
    axis.set_xlabel(f"{shown}; the claim says: above 0")
    axis.grid(False, axis="y")
    handles = [axis.plot([], [], "o", color=COLOURS[n], label=titles[b])[0] for n, b in enumerate(benches)]
    axis.legend(handles=handles, loc="lower left", bbox_to_anchor=(0, 1.0), ncols=2, borderaxespad=0.2)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)


def write(known: dict[Cell, Record], docs: Path = DOCS) -> None:
    """Write the pages and figures of what has been measured, and the table in claims.md."""
    for claim in CLAIMS:
        found = results(claim, known)
        if found:
            target = docs / f"claims/{claim.name}.md"
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(page(claim, found, known))
            draw(found, docs / f"images/claims/{claim.name}.png")
    overview = docs / "claims.md"
    before, mark, rest = overview.read_text().partition("<!-- table -->\n")
    _, end, after = rest.partition("<!-- end of the table -->\n")
    overview.write_text(f"{before}{mark}{index(known)}\n{end}{after}")
