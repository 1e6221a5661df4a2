"""Writes the pages of the book: a table of all claims, and for each its numbers, its verdict and its figure."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from book.cells import BENCHES, ROOT, Cell, Record
from book.literature import BY_UNIT, CLAIMS, Claim, Contrast, about
from unetseg.evaluation.statistics import LEVEL, Spread, holm, holm_levels, spread_of
from unetseg.evaluation.style import COLOURS, SOFT, styled
from unetseg.names import counted

DOCS = ROOT / "docs"
HELD, CONTRADICTED, NOT_SHOWN, TOO_FEW = "held", "contradicted", "not shown", "too few seeds yet"
SHOWN = (HELD, CONTRADICTED)
HARDLY = " †"
"""Of what is shown only by a network that has hardly learned."""
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
    units: int
    """Those of the test set, by which a score is told; 0 for a reading, which is one number a training."""
    p: float
    """With Holm's correction over the contrasts and benches of the claim that have enough seeds; nan with one seed."""
    level: float = 1 - LEVEL
    hardly: bool = False
    """Whether one of the two settings has hardly learned there."""

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


def benches_of(known: Iterable[Cell]) -> list[tuple[str, int]]:
    """Return the benches of some cells with the pictures' size, in their order."""
    return sorted({(cell.bench, cell.size) for cell in known}, key=lambda own: ([*BENCHES].index(own[0]), own[1]))


def results(claim: Claim, known: dict[Cell, Record]) -> list[Result]:
    """Return what is known of each contrast on each bench, by the seeds that both settings have."""
    found = []
    for bench, size in benches_of(known):
        for contrast in claim.contrasts:
            own = contrasted(
                contrast, {cell: r for cell, r in known.items() if (cell.bench, cell.size) == (bench, size)}
            )
            if own:
                hardly = any(hardly_learned(known, (bench, size), s) for s in (contrast.more, contrast.less))
                found.append(replace(own, bench=bench, size=size, hardly=hardly))
    tested = [number for number, result in enumerate(found) if result.seeds >= SEEDS]
    values = [found[number].p for number in tested]
    for number, p, level in zip(tested, holm(values), holm_levels(values), strict=True):
        found[number] = replace(found[number], p=p, level=level)
    return found


def contrasted(contrast: Contrast, known: dict[Cell, Record]) -> Result | None:
    """Return a contrast on one bench before any correction; None where no seed is known of both settings."""

    def values(setting: str | float) -> dict[int, np.ndarray | float]:
        own = {cell.seed: record for cell, record in known.items() if cell.setting == setting}
        if contrast.reading in BY_UNIT:
            return {seed: by_unit(record, contrast.reading) for seed, record in own.items()}
        numbers = {seed: record["readings"].get(contrast.reading) for seed, record in own.items()}
        return {seed: number for seed, number in numbers.items() if number is not None}

    more = values(contrast.more)
    less = dict.fromkeys(more, contrast.less) if isinstance(contrast.less, float) else values(contrast.less)
    seeds = sorted(more.keys() & less.keys())
    if not seeds:
        return None
    units = {r["units"] for c, r in known.items() if c.setting in (contrast.more, contrast.less) and c.seed in seeds}
    if len(units) > 1:
        raise ValueError(f"{contrast}: the cells were tested on different pictures: {', '.join(sorted(units))}")
    differences = np.array([np.subtract(more[seed], less[seed]) for seed in seeds])
    count = int(units.pop().split()[0]) if differences.ndim > 1 else 0
    if count:
        spread = spread_of(differences)
    else:
        variance = differences.var(ddof=1) / len(seeds) if len(seeds) > 1 else math.nan
        spread = Spread(variance, len(seeds) - 1, 0.0, 1, 0.0)
    mean, known_spread = float(differences.mean()), len(seeds) > 1
    half = float(spread.half_width(1 - LEVEL)) if known_spread else math.nan
    p = spread.p(mean) if known_spread else math.nan
    return Result("", 0, contrast, mean, half, spread, len(seeds), count, p)


def by_unit(record: Record, score: str) -> np.ndarray:
    """Return a score of each unit of the test set."""
    if score == "edge_gain":
        return np.subtract(record["boundary_iou"], record["iou"])
    return np.array(record[score])


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
    shown = [result for result in enough if result.verdict in SHOWN]
    mark = HARDLY if shown and all(result.hardly for result in shown) else ""
    if len(seen) == 1:
        return seen.pop() + mark
    if {HELD, CONTRADICTED} <= seen:
        return f"held in part, contradicted in part{mark}"
    return f"{HELD if HELD in seen else CONTRADICTED} in part{mark}"


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
        benches = "; ".join(dict.fromkeys(titled((r.bench, r.size)) for r in found))
        text = str(least) if least == most else f"{least} to {most}"
        title = f"[{claim.title}](claims/{claim.name}.md)"
        lines.append(f"| {' | '.join((title, claim.source, verdict(claim, found), text, benches))} |")
    table = "\n".join(lines) if len(lines) > 2 else ""
    hours = sum(record["minutes"] for record in known.values()) / 60
    cost = (
        f"{counted(len(known), 'training')} that count, with their evaluations: {hours:.1f} hours of wall time, a "
        "thread each, two at once, on shared x86-64 machines of two cores."
    )
    return "\n\n".join(filter(None, (table, f"Not measured yet: {'; '.join(absent)}." if absent else "", cost)))


def page(claim: Claim, found: Sequence[Result], known: dict[Cell, Record]) -> str:
    """Return the page of a claim."""
    rows = [
        "| bench | difference | of | mean [95 %] | p (Holm) | seeds | shown in 4 of 5 from | verdict |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for own in found:
        smallest = f"{own.smallest:.3f}" if own.smallest > 0 else "–"  # without any spread there is no estimate
        if beyond(own):
            smallest = "none"
        words = (titled((own.bench, own.size)), name(own.contrast), reading(own), interval(own), p_value(own.p))
        rows.append(f"| {' | '.join(words)} | {own.seeds} | {smallest} | {verdict_of(own)} |")
    benches = list(dict.fromkeys((own.bench, own.size) for own in found))
    used = [cell for cell in cells_of(claim, known) if (cell.bench, cell.size) in benches]
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
        legend(found),
        "",
        *([claim.remark, ""] if claim.remark else []),
        *settings_table(benches, used, known),
        "",
        " ".join(f"{titled(bench)}: {BENCHES[bench[0]].pictures}." for bench in benches),
        "",
        f"*`{command(claim, benches)}`; such networks on larger pictures of Pets, for longer: `python -m "
        f"unetseg.ablate {claim.experiment} seed=0,1,2`. {counted(len(used), 'training')}, which other claims share; "
        f"{minutes:.0f} minutes of wall time on a shared machine.*",
    ]
    return "\n".join(lines) + "\n"


def legend(found: Sequence[Result]) -> str:
    """Return what the columns of a claim's table mean, and the marks that are there."""
    text = (
        "Intervals are of each difference by itself; p, corrected over the rows of three seeds and more, decides. "
        "*Shown in 4 of 5 from*: a difference as large would be shown with a probability of 80 %, by the spread of "
        "these seeds"
    )
    marks = ["; none: not even the largest that there is"] if any(beyond(own) for own in found) else []
    marks += [". †: one of the two networks has hardly learned"] if any(own.hardly for own in found) else []
    return f"{text}{''.join(marks)}."


def beyond(own: Result) -> bool:
    """Return whether no difference of scores is large enough to be shown, as they differ by 1 at most."""
    return bool(own.units) and own.smallest > 1


def command(claim: Claim, benches: Sequence[tuple[str, int]]) -> str:
    """Return the command that trains what a page shows."""
    needed = {need for bench, _ in benches for need in BENCHES[bench].needs}
    paths = [f"--{need} {need.upper()}" for need in ("pets", "sets", "weights") if need in needed]
    words = ["python scripts/claims.py WORK", *paths, "--benches", *dict.fromkeys(bench for bench, _ in benches)]
    return " ".join([*words, "--only", claim.name])


def settings_table(benches: Sequence[tuple[str, int]], used: Sequence[Cell], known: dict[Cell, Record]) -> list[str]:
    """Return a table of what the settings are and how well each segments; a word on those that have hardly learned."""
    rows = [
        f"| setting | what it is | {' | '.join(f'IoU, {titled(bench)}' for bench in benches)} |",
        f"| --- | --- |{' --- |' * len(benches)}",
    ]
    weak = []
    for setting in dict.fromkeys(cell.setting for cell in used):
        scores = []
        for bench in benches:
            own = mean_of(known, bench, setting, "iou_of_the_set")
            scores.append("–" if math.isnan(own) else f"{own:.3f}")
            if hardly_learned(known, bench, setting):
                weak.append(
                    f"`{setting}` has hardly learned on {titled(bench)}, where the foreground everywhere has "
                    f"{mean_of(known, bench, setting, 'foreground'):.3f}: a difference to it says little else."
                )
        rows.append(f"| {setting} | {about(setting)} | {' | '.join(scores)} |")
    return [*rows, "", " ".join(["IoU over the set, the mean over the seeds.", *weak])]


def hardly_learned(known: dict[Cell, Record], bench: tuple[str, int], setting: str | float) -> bool:
    """Return whether a setting has not come a quarter of the way from the foreground everywhere to concat's IoU."""
    if not isinstance(setting, str):
        return False
    own, usual = (mean_of(known, bench, name, "iou_of_the_set") for name in (setting, "concat"))
    everywhere = mean_of(known, bench, setting, "foreground")
    return own < everywhere + (usual - everywhere) / 4


def verdict_of(own: Result) -> str:
    """Return the verdict of a row, with a mark where a network that has hardly learned takes part."""
    return own.verdict + (HARDLY if own.hardly and own.verdict in SHOWN else "")


def mean_of(known: dict[Cell, Record], bench: tuple[str, int], setting: str, number: str) -> float:
    """Return a number of the records of a setting on a bench, the mean over its seeds; nan without any."""
    own = [r[number] for c, r in known.items() if c.setting == setting and (c.bench, c.size) == bench]
    return float(np.mean(own)) if own else math.nan


def titled(bench: tuple[str, int]) -> str:
    """Return the words for a bench and the side of its pictures."""
    own = BENCHES[bench[0]]
    return f"{own.title}, {'crops of ' if own.side == 'data.crop' else ''}{bench[1]} px"


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
    titles = {"iou": "IoU", "boundary_iou": "Boundary IoU", "edge_gain": "Boundary IoU − IoU"}
    if not own.units:
        return f"`{own.contrast.reading}`"
    return f"{titles[own.contrast.reading]} by {BENCHES[own.bench].unit}"


def interval(own: Result) -> str:
    """Return a difference with its interval; bold where something was shown."""
    if math.isnan(own.half_width):
        return f"{own.difference:+.3f}"
    text = f"{own.difference:+.3f} [{own.difference - own.half_width:+.3f}, {own.difference + own.half_width:+.3f}]"
    return f"**{text}**" if own.verdict in SHOWN else text


def p_value(p: float) -> str:
    """Return a p value in words."""
    if math.isnan(p) or p < 0.001:
        return "–" if math.isnan(p) else "< 0.001"
    return f"{p:.4f}" if f"{p:.3f}" == f"{1 - LEVEL:.3f}" else f"{p:.3f}"


@styled
def draw(found: Sequence[Result], path: Path) -> None:
    """Write the differences with their intervals, filled where shown; a panel a bench, in one colour on all pages."""
    benches = list(dict.fromkeys((own.bench, own.size) for own in found))
    rows = [[own for own in reversed(found) if (own.bench, own.size) == bench] for bench in benches]
    heights = [len(own) + 2.2 for own in rows]
    figure = Figure(figsize=(6.4, 0.27 * sum(heights) + 0.3))
    axes = figure.subplots(len(benches), 1, squeeze=False, gridspec_kw={"height_ratios": heights})[:, 0]
    colours = dict(zip(BENCHES, COLOURS, strict=False))
    for axis, bench, own_rows in zip(axes, benches, rows, strict=True):
        colour = colours[bench[0]]
        for place, own in enumerate(own_rows):
            bar = None if math.isnan(own.half_width) else own.half_width
            filled = colour if own.verdict in SHOWN else "none"
            axis.errorbar(own.difference, place, xerr=bar, fmt="o", color=colour, markerfacecolor=filled, capsize=2.5)
        axis.axvline(0, color=SOFT, linewidth=0.7)
        axis.set_yticks(range(len(own_rows)), [f"{name(o.contrast)}, {reading(o).strip('`')}" for o in own_rows])
        axis.set_ylim(-0.6, len(own_rows) - 0.4)
        axis.grid(False, axis="y")
        axis.set_title(titled(bench), loc="right")  # a long one runs on beside the labels, not over the edge
    axes[-1].set_xlabel("difference with its 95 % interval, filled where shown; the claim says: above 0", loc="right")
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
    fill(docs / "claims.md", "table", index(known))


def fill(path: Path, name: str, text: str) -> None:
    """Put text between a page's marks `<!-- NAME -->` and `<!-- end of NAME -->`.

    Raises:
        ValueError: the page doesn't have both, one after the other.
    """
    before, mark, rest = path.read_text().partition(f"<!-- {name} -->\n")
    _, end, after = rest.partition(f"<!-- end of {name} -->\n")
    if not (mark and end):
        raise ValueError(f"{path} lacks <!-- {name} --> or <!-- end of {name} -->, lines of their own")
    path.write_text(f"{before}{mark}\n{text}\n\n{end}{after}")
