"""What is said of the numbers, and never more than an interval allows."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from unetseg.reporting.findings import Pair
from unetseg.reporting.results import Setting, Sweep

MINUS = "−"


def number(value: float, digits: int = 3) -> str:
    """Return a score: 0.662; a dash where there is none."""
    return "–" if np.isnan(value) else f"{value:.{digits}f}".replace("-", MINUS)


def change(value: float, digits: int = 3) -> str:
    """Return a difference with its sign: +0.012."""
    return f"{value:+.{digits}f}".replace("-", MINUS)


def interval(low: float, high: float, digits: int = 3, signed: bool = False) -> str:
    """Return the ends of an interval: [0.640, 0.682]."""
    one = change if signed else number
    return f"[{one(low, digits)}, {one(high, digits)}]"


def p_value(p: float) -> str:
    """Return a p-value with three decimals, or that it is below 0.001."""
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def listed(parts: Sequence[str]) -> str:
    """Return a, b and c."""
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"


def against(base: Setting, found: Sequence[Pair], title: str) -> str:
    """Return how the other settings differ from `base`: what was shown, and how small the rest must be."""
    mine = [pair for pair in found if pair.base is base]
    if not mine:
        return f"No other setting can be compared with {base.name} in {title}."
    parts = [
        f"is {word} with {listed([pair.other.name for pair in group])}"
        for word, sign in (("higher", 1), ("lower", -1))
        if (group := [pair for pair in mine if pair.shown and sign * pair.result.difference > 0])
    ]
    text = f"Compared with {base.name}, {title} {' and '.join(parts)}" if parts else ""
    rest = [pair for pair in mine if not pair.shown]
    if not rest:
        return f"{text}."
    names = listed([pair.other.name for pair in rest])
    could = f"the smallest that could have been: {listed([number(pair.result.smallest) for pair in rest])}"
    if text:
        return f"{text}; no difference was shown for {names} ({could})."
    return f"No difference from {base.name} in {title} was shown for {names} ({could})."


def measured(pair: Pair) -> str:
    """Return a difference with its interval, and whether it was shown."""
    result = pair.result
    doubt = "not after Holm" if pair.excludes_zero else "not shown"
    return f"{change(result.difference)} {interval(result.low, result.high, signed=True)}" + (
        "" if pair.shown else f", {doubt}"
    )


def differences(found: dict[str, list[Pair]]) -> str:
    """Return how many differences were shown in each metric, {title: pairs}, and the least that could have been."""
    counts = [f"{sum(pair.shown for pair in pairs)} of {len(pairs)} in {title}" for title, pairs in found.items()]
    text = f"Differences shown (95 % interval without 0, Holm-corrected p below 0.05): {listed(counts)}"
    smallest = [pair.result.smallest for pairs in found.values() for pair in pairs if not pair.shown]
    if not smallest:
        return f"{text}."
    ends = sorted({number(min(smallest)), number(max(smallest))})
    return f"{text}; the smallest that could have been shown in the others: {' to '.join(ends)}."


def seeds(sweep: Sweep) -> str:
    """Return what the intervals cover."""
    single = [setting.name for setting in sweep.settings if len(setting.runs) == 1]
    if len(single) == len(sweep.settings):
        return (
            "One seed each: seeds were not varied, so the intervals cover the images only; nothing is said about "
            "another training of the same settings."
        )
    everyone = "Intervals cover the choice of seeds and of test images."
    if not single:
        return everyone
    return (
        f"{everyone} With {listed(single)} seeds were not varied (one seed): there they cover the images only, and "
        "nothing is said about another training."
    )


def absent(sweep: Sweep) -> str:
    """Return which cells are not in the report."""
    parts = [
        f"{kind}: {', '.join(names)}"
        for kind in ("missing", "unfinished", "damaged")
        if (names := [name for name, state in sweep.absent if state == kind])
    ]
    total = len(sweep.runs) + len(sweep.absent)
    are = "is" if len(sweep.absent) == 1 else "are"
    return f"{len(sweep.absent)} of {total} cells {are} not in this report; {'; '.join(parts)}." if parts else ""


def best(sweep: Sweep) -> str:
    """Return who has the highest IoU over the set, and no more than that."""
    means = {setting: setting.mean("test/iou") for setting in sweep.settings}
    top = max(means, key=lambda setting: means[setting])
    if len(means) == 1:
        return f"One setting is finished, {top.name}, with a test IoU of {number(means[top])} over the set."
    bottom = min(means, key=lambda setting: means[setting])
    what = "the mean over its seeds" if len(top.runs) > 1 else "one seed"
    return (
        f"Test IoU over the set reaches from {number(means[bottom])} ({bottom.name}) to {number(means[top])} "
        f"({top.name}; {what}); which gaps are more than chance, the paired differences say."
    )


def learning(last: dict[Setting, float], at_the_end: int, runs: int) -> str:
    """Return where the validation IoU ended, and in how many runs the best epoch was the last one."""
    ends = ", ".join(f"{setting.name} {number(value)}" for setting, value in last.items())
    text = f"Validation IoU after the last epoch: {ends}"
    if at_the_end == 0:
        return f"{text}; no run was best in its last epoch."
    return f"{text}; {at_the_end} of {runs} runs were best in their last epoch, so training on may change what is seen."
