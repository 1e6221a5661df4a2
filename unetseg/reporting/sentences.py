"""The sentences on the numbers, which never claim more than an interval allows."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pandas as pd

from unetseg.evaluation.statistics import LEVEL, Comparison, seed_interval
from unetseg.names import counted
from unetseg.reporting.comparisons import Pair
from unetseg.reporting.results import Setting, Sweep

MINUS = "−"
SEEDS_OF_AN_INTERVAL = 3
"""With two the interval is so wide that it says nothing."""


def number(value: float, digits: int = 3) -> str:
    """Return a score: 0.662; a dash for nan."""
    return "–" if np.isnan(value) else f"{value:.{digits}f}".replace("-", MINUS)


def change(value: float, digits: int = 3) -> str:
    """Return a difference with its sign: +0.012."""
    return f"{value:+.{digits}f}".replace("-", MINUS)


def interval(low: float, high: float, digits: int = 3, signed: bool = False) -> str:
    """Return the ends of an interval: [0.640, 0.682]."""
    text = change if signed else number
    return f"[{text(low, digits)}, {text(high, digits)}]"


def p_value(p: float) -> str:
    """Return a p-value with three decimals, more where it would round to 0.050, or that it is below 0.001."""
    if p < 0.001:
        return "< 0.001"
    digits = next((n for n in range(3, 9) if (round(p, n) < round(1 - LEVEL, 9)) == (p < 1 - LEVEL)), 9)
    return f"{p:.{digits}f}"


def digits_for(scale: float, least: int = 3) -> int:
    """Return with how many decimals a number of this size does not become 0: 3 for 0.02, 4 for 0.0004."""
    return max(least, math.ceil(-math.log10(abs(scale)))) if scale else least


def mean_and_interval(result: Comparison, least: int = 3) -> tuple[str, str]:
    """Return a difference and its interval, with more decimals where these would hide an interval's ends."""
    digits = digits_for(_width(result) / 2 or result.difference, least)
    return change(result.difference, digits), interval(result.low, result.high, digits, signed=True)


def join_words(parts: Sequence[str]) -> str:
    """Return a, b and c."""
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"


ONE_SEED = "one seed decides nothing; the same command with seed=0,1,2 would"
MOST = 1.0
"""No two scores differ by more."""


def compare_with_base(base: Setting, pairs: Sequence[Pair], title: str) -> str:
    """Return how the other settings differ from `base`: the differences that were shown, and bounds of the others."""
    with_base = [pair for pair in pairs if pair.base is base]
    if not with_base:
        return f"No other setting can be compared with {base.name} in {title}."
    parts = []
    for word, sign in (("higher", 1), ("lower", -1)):
        group = [pair for pair in with_base if pair.shown and sign * pair.result.difference > 0]
        if group:
            parts.append(f"is {word} with {_names(group)}")
    text = [f"compared with {base.name}, {title} {' and '.join(parts)}"] if parts else []
    not_shown = [pair for pair in with_base if not pair.shown and not pair.one_seed]
    hints = [pair for pair in not_shown if pair.excludes_zero]
    rest = [pair for pair in not_shown if not pair.excludes_zero]
    if hints:
        text.append(
            f"no difference from {base.name} in {title} was shown for {_names(hints)} after Holm's correction, "
            f"although 0 lies outside the interval of that one comparison ({_estimates(hints)})"
        )
    if rest:
        text.append(f"no difference from {base.name} in {title} was shown for {_names(rest)} ({_estimates(rest)})")
    single = [pair for pair in with_base if pair.one_seed]
    if single:
        text.append(f"between {base.name} and {_names(single)} {ONE_SEED}")
    return _with_two_seeds("; ".join(text), with_base)


def describe_pair(pair: Pair, unit: str) -> str:
    """Return a difference with its interval, and whether it was shown."""
    result = pair.result
    text = " ".join(mean_and_interval(result))
    if pair.one_seed:
        return f"{text}, of these two models over {unit}s only"
    if pair.shown:
        return text
    return f"{text}, {'not after Holm' if pair.excludes_zero else 'not shown'}"


def differences(pairs_by_title: dict[str, list[Pair]]) -> str:
    """Return how many differences were shown in each metric, and the smallest that could have been."""
    decided = {title: [pair for pair in pairs if not pair.one_seed] for title, pairs in pairs_by_title.items()}
    decided = {title: pairs for title, pairs in decided.items() if pairs}
    if not decided:
        return f"{ONE_SEED[0].upper()}{ONE_SEED[1:]}: the numbers below describe these trained models and no settings."
    counts = [f"{sum(pair.shown for pair in pairs)} of {len(pairs)} in {title}" for title, pairs in decided.items()]
    together = sum(len(pairs) for pairs in decided.values())
    text = f"Differences shown (p below 0.05 after Holm's correction for {together} comparisons): {join_words(counts)}"
    values = [pair.smallest.value for pairs in decided.values() for pair in pairs if not pair.shown]
    if values:
        ends = " to ".join(dict.fromkeys(_size(end) for end in (min(values), max(values))))
        text = f"{text}; the smallest that could have been shown in the others, by estimate: {ends}"
    return _with_two_seeds(text, list({pair.name: pair for pairs in decided.values() for pair in pairs}.values()))


def estimate(pair: Pair) -> str:
    """Return the smallest difference that could have been shown, with its own interval: 0.012 [0.008, 0.041].

    More than 1 stands for every difference that no two scores can have.
    """
    smallest = pair.smallest
    digits = digits_for(smallest.value)
    return f"{_size(smallest.value)} [{_size(smallest.low, digits)}, {_size(smallest.high, digits)}]"


def units(pairs_by_metric: dict[str, list[Pair]], unit: str) -> list[str]:
    """Return notes on the unit of the test set, if it is the group, and on images without a score."""
    pairs = [pair for own in pairs_by_metric.values() for pair in own]
    notes = []
    if unit == "group" and pairs:
        groups = _range([pair.result.units for pair in pairs])
        images = _range([pair.by_image.units for pair in pairs])
        note = (
            f"The unit is the group ({groups} groups, {images} images), each by the mean of its images: images of one "
            "group are not independent of each other."
        )
        shares = [_width(pair.by_image) / _width(pair.result) for pair in pairs if _width(pair.result)]
        if not any(pair.grouped for pair in pairs):
            note = f"The unit is the group, and each of the {groups} groups is one image."
        elif shares:
            note += " Taken one by one, as if they were, they would have given intervals "
            note += f"{np.median(shares):.2f} times as wide (median; last column)."
        notes.append(note)
    without = {pair.without_score for pair in pairs if pair.without_score}
    if without:
        counts = join_words([str(number) for number in sorted(without)])
        notes.append(
            f"Left out of both settings, as a run has no score for them (all pixels ignored): {counts} images."
        )
    return notes


def folds(sweep: Sweep, pairs: Sequence[Pair], unit: str) -> list[str]:
    """Return notes on a cross-validation: how many folds, seeds and images were compared, and which folds were not."""
    if unit != "fold":
        several = dict.fromkeys((run.fold, run.folds) for run in sweep.runs if run.folds)
        if not several:
            return []
        alone = join_words([f"fold {fold} of {number} (from 0)" for fold, number in several])
        return [f"One fold alone, {alone}: nothing is said about the other folds."]
    notes: list[str] = []
    sizes = {(len(p.cells.folds), len(p.cells.seeds), p.images): p for p in pairs}
    for number, seeds, images in sizes:
        notes.append(
            f"The unit is the fold: {counted(number, 'fold')} of a cross-validation, {counted(seeds, 'seed')} and "
            f"{counted(images, 'test image')}, each tested once a seed. A fold counts once, by the mean of its images "
            "or groups, as the same trained models test them. Two folds share most of their training images, so that "
            "no estimate of their spread is unbiased; it is taken larger for that (Nadeau and Bengio 2003)."
        )
    for pair in pairs:
        lacking = [text for setting in (pair.other, pair.base) if (text := _lacking(setting, pair))]
        if lacking:
            common = join_words([str(fold) for fold in pair.cells.folds])
            of_seeds = join_words([str(seed) for seed in pair.cells.seeds])
            notes.append(
                f"{pair.name} is compared on folds {common} with seeds {of_seeds} alone: {join_words(lacking)}."
            )
    if len(sweep.settings[0].folds) > 1:
        notes.append("Where means over seeds are told of gradients and curves, each run counts as one, of any fold.")
    return notes


def _lacking(setting: Setting, pair: Pair) -> str:
    """Return which of the folds and seeds of a pair's settings one of them lacks; an empty string if none."""
    cells = {(run.fold, run.seed) for of_pair in (pair.base, pair.other) for run in of_pair.runs}
    own = {(run.fold, run.seed) for run in setting.runs}
    absent = ", ".join(f"fold {fold} with seed {seed}" for fold, seed in sorted(cells - own))
    return f"{setting.name} lacks {absent}" if absent else ""


def groups_unused(runs: Sequence[tuple[str, str]]) -> str:
    """Return why the unit is the image although there are groups; an empty string if nothing is to be said."""
    if not runs:
        return ""
    place, reason = runs[0]
    more = f" (and {len(runs) - 1} more)" if len(runs) > 1 else ""
    return (
        f"The unit is the image, because {place}{more} {reason}. Images of one group are often alike: then these "
        "intervals are too narrow."
    )


def pooling(done: bool) -> str:
    """Return what pooled=true has done."""
    if not done:
        return (
            "pooled=true changed nothing: it needs settings that all have the same test images and two seeds or more "
            "in common. The spread over seeds is each pair's own."
        )
    return (
        "pooled=true: the spread over seeds is taken as the same for all settings; where it is not, the intervals of "
        "the setting that spreads more are too narrow."
    )


def seeds(sweep: Sweep, pairs: Sequence[Pair], unit: str) -> str:
    """Return what the intervals cover: seeds and units, or units only."""
    single = [setting.name for setting in sweep.settings if len(setting.seeds) == 1]
    if len(single) == len(sweep.settings):
        return (
            f"One seed each: intervals cover the test {unit}s only and describe these trained models; another training "
            "of the same settings may differ by more."
        )
    text = f"Intervals cover the choice of seeds and of test {unit}s."
    if single:
        text += f" With {join_words(single)} there is one seed: there they cover the {unit}s only, and nothing is said "
        text += "about another training."
    few = [pair.name for pair in pairs if pair.one_seed and {pair.base.name, pair.other.name}.isdisjoint(single)]
    if few:
        text += f" Only one seed is in common in {join_words(few)}: there they cover the {unit}s only."
    return text


def describe_plan(
    metric: str, needed: Sequence[int | None], units: str, now: Sequence[int], *, units_help: bool
) -> str:
    """Return how many seeds would show a difference, from the estimate of seeds needed, its lower and upper end."""
    value, low, high = needed
    have = f"{now[0]}" if len(now) == 1 else f"{now[0]} to {now[-1]}"
    if value is None and not units_help:
        return f"more than 100 seeds in {metric} with these {units} or any more of them: the trainings spread too far"
    if value is None:
        return f"more than 100 seeds in {metric} with these {units} (more {units.split()[-1]} are needed)"
    upper = "more than 100" if high is None else str(high)
    return f"{value} seeds in {metric} (by the spread so far, {low} to {upper}; there are {have}) with these {units}"


def absent(sweep: Sweep) -> str:
    """Return which cells are not in the report; an empty string if all are."""
    parts = [
        f"{kind}: {', '.join(names)}"
        for kind in ("missing", "unfinished", "damaged")
        if (names := [name for name, state in sweep.absent if state == kind])
    ]
    total = len(sweep.runs) + len(sweep.absent)
    are = "is" if len(sweep.absent) == 1 else "are"
    return f"{len(sweep.absent)} of {total} cells {are} not in this report; {'; '.join(parts)}." if parts else ""


def mean_over_seeds(values: pd.Series) -> str:
    """Return the mean of one value a seed, without those that are nan, with its interval if they are enough."""
    values = values.dropna()
    spread = f" {interval(*seed_interval(values.tolist()))}" if len(values) >= SEEDS_OF_AN_INTERVAL else ""
    return number(values.mean()) + spread


def classes(iou: pd.Series) -> str:
    """Return which classes are found best and worst, by their mean IoU over settings and seeds."""
    known = iou.dropna()
    if not len(known):
        return "No class was scored in any run."
    lowest, highest = known.idxmin(), known.idxmax()
    return (
        f"By the mean over all settings and seeds, a class's IoU over the set reaches from {number(known[lowest])} "
        f"({lowest}) to {number(known[highest])} ({highest})."
    )


def best(sweep: Sweep) -> str:
    """Return which setting has the highest IoU over the set, without a claim on the differences."""
    means = {s: mean for s in sweep.settings if not math.isnan(mean := s.mean("test/iou"))}
    if not means:
        return "No setting has a test IoU in all of its runs: in some no test pixel was scored."
    top, bottom = (choose(means, key=lambda setting: means[setting]) for choose in (max, min))
    if len(sweep.settings) == 1:
        return f"One setting is finished, {top.name}, with a test IoU of {number(means[top])} over the set."
    what = mean_over(top)
    least, greatest = number(means[bottom]), number(means[top])
    reach = f"Test IoU over the set reaches from {least} ({bottom.name}) to {greatest} ({top.name}; {what})"
    if least == greatest:
        reach = f"Test IoU over the set is {least} with {join_words([setting.name for setting in means])}"
    without = [setting.name for setting in sweep.settings if setting not in means]
    if without:
        reach += f"; a run of {join_words(without)} has none"
    if all(len(setting.seeds) == 1 for setting in sweep.settings):
        return f"{reach}; {ONE_SEED}."
    return f"{reach}; which gaps are more than chance, the paired differences say."


def mean_over(setting: Setting) -> str:
    """Return over what the mean of a setting's runs is taken."""
    over = [name for name in ("seeds", "folds") if len(getattr(setting, name)) > 1]
    return f"the mean over its {join_words(over)}" if over else "one seed"


def learning(last: dict[Setting, float], at_the_end: int, runs: int) -> str:
    """Return the last validation IoU of each setting, and in how many runs the last epoch was the best."""
    ends = ", ".join(f"{setting.name} {number(value)}" for setting, value in last.items())
    text = f"Validation IoU after the last epoch: {ends}"
    if at_the_end == 0:
        return f"{text}; no run was best in its last epoch."
    return f"{text}; {at_the_end} of {runs} runs were best in their last epoch, so training on may change what is seen."


def _with_two_seeds(text: str, pairs: Sequence[Pair]) -> str:
    """Return clauses as a sentence that says first which of the pairs have two seeds only."""
    two = [pair for pair in pairs if pair.result.seeds == 2]
    if not two:
        return f"{text[0].upper()}{text[1:]}."
    which = "" if len(two) == len(pairs) else f" in {join_words([pair.name for pair in two])}"
    return f"With two seeds only{which}, which hardly tell how far trainings spread: {text[0].lower()}{text[1:]}."


def _size(value: float, digits: int | None = None) -> str:
    """Return the size of a difference; more than 1 where no two scores can differ that far."""
    return "more than 1" if value > MOST else number(value, digits or digits_for(value))


def _names(pairs: Sequence[Pair]) -> str:
    return join_words([pair.other.name for pair in pairs])


def _estimates(pairs: Sequence[Pair]) -> str:
    return f"by estimate {join_words([estimate(pair) for pair in pairs])} could have been"


def _range(values: Sequence[int]) -> str:
    """Return 38 to 40, or 40 if all are the same."""
    return " to ".join(dict.fromkeys((str(min(values)), str(max(values)))))


def _width(result: Comparison) -> float:
    return result.high - result.low
