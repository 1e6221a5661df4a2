"""Settings compared on the same images, seeds and folds, and what it would take to show a difference."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Sequence
from dataclasses import astuple, dataclass, replace
from functools import cached_property

import numpy as np

from unetseg.evaluation.statistics import (
    LEVEL,
    Comparison,
    Components,
    Smallest,
    compare,
    components,
    group_means,
    holm,
    holm_levels,
    pooled_seeds,
    seeds_needed,
)
from unetseg.reporting.results import Run, Setting, Sweep

METRICS = {"iou": "IoU", "boundary_iou": "Boundary IoU"}
"""The metrics in which settings are compared, image by image: columns of per_image.csv."""
ALL_PAIRS = 5
"""With at most so many settings all pairs are compared, with more each setting with the first."""
ENDLESS = 10**9
"""So many units of a test set that their choice matters no more."""
TIMES = (1, 2, 4)
"""Sizes of the test set in a plan, as multiples of the present one."""


@dataclass(frozen=True)
class Cells:
    """Seeds and folds each of which some settings have with each other one."""

    seeds: list[int]
    folds: list[int]
    """[0] where there are no folds."""


@dataclass(frozen=True)
class Pair:
    """Two settings on the same images, seeds and folds; differences are `other` minus `base`."""

    base: Setting
    other: Setting
    result: Comparison
    by_image: Comparison
    """The same as if the images of a group were independent; equal to `result` if the unit is the image or the fold."""
    without_score: int
    """Images that are left out of both settings because a run has no score for them."""
    cells: Cells
    """The seeds and folds that both settings have."""
    images: int
    """Test images that have a score in both settings, of all folds."""
    p: float = math.nan
    """The p value with Holm's correction over all pairs and metrics; nan with one seed."""
    level: float = math.nan
    """The level for this comparison's own p after Holm's correction; nan with one seed."""

    @property
    def name(self) -> str:
        """Return the difference as a formula of names."""
        return f"{self.other.name} − {self.base.name}"

    @property
    def one_seed(self) -> bool:
        """Return whether there is one seed: then only two trained models are compared, not their settings."""
        return self.result.seeds == 1

    @property
    def grouped(self) -> bool:
        """Return whether a unit of the test set is more than one image."""
        return self.result.units < self.by_image.units

    @property
    def excludes_zero(self) -> bool:
        """Return whether the interval excludes 0."""
        return self.result.low > 0 or self.result.high < 0

    @property
    def shown(self) -> bool:
        """Return whether a difference was shown; then the interval excludes 0, as the corrected p is the larger one."""
        return self.p < 1 - LEVEL

    @cached_property
    def smallest(self) -> Smallest:
        """Return the smallest difference that could have been shown at `level`; not for one seed."""
        return self.result.spread.smallest(self.level)


@dataclass(frozen=True)
class Plan:
    """How many seeds, and units of the test set, would show a difference in a metric."""

    metric: str
    parts: Components
    """The spread seen so far, the mean over all pairs."""
    least: Components
    """The same with the seeds' variance at the lower end of its interval."""
    most: Components
    units: int
    """Units of the present test set."""
    level: float
    """The level that Holm's correction asks of the first of all comparisons."""

    def seeds(self, difference: float, times: int) -> list[int | None]:
        """Return the seeds needed with `times` the units: estimate, lower and upper end; None means more than 100."""
        spreads = (self.parts, self.least, self.most)
        return [seeds_needed(parts, times * self.units, difference, self.level) for parts in spreads]

    def units_help(self, difference: float) -> bool:
        """Return whether 100 seeds would show the difference if there were very many units."""
        return seeds_needed(self.parts, ENDLESS, difference, self.level) is not None

    def curve(self, parts: Components, seeds: Sequence[int], times: int) -> list[float]:
        """Return the smallest difference that each number of seeds could show with `times` the units."""
        return [parts.spread(number, times * self.units).smallest(self.level).value for number in seeds]


def unit(sweep: Sweep) -> str:
    """Return the independent unit of the test set.

    It is the "fold" if a setting has several of them, which have models of their own; "group" if each run has several
    groups; else "image".
    """
    if any(len(setting.folds) > 1 for setting in sweep.settings):
        return "fold"
    return "image" if any(_groups_unusable(run) for run in sweep.runs) else "group"


def groups_unused(sweep: Sweep, unit: str) -> list[tuple[str, str]]:
    """Return the places of runs whose groups can't be the unit, each with the reason; none if no run has groups."""
    if unit != "image" or not any(any(groups_of(run)) for run in sweep.runs):
        return []
    return [(run.place, reason) for run in sweep.runs if (reason := _groups_unusable(run))]


def mean_with_interval(setting: Setting, metric: str, unit: str) -> Comparison | None:
    """Return the mean over seeds and units with its interval; None if the seeds have different images."""
    if setting.images is None:
        return None
    scores, _, _ = _unit_scores([setting], metric, common_cells([setting]), unit)
    return compare(scores[0], np.zeros_like(scores[0]), folds=unit == "fold") if scores.shape[-1] > 1 else None


def common_cells(settings: Sequence[Setting]) -> Cells:
    """Return the most seeds and folds of which all settings have every combination; empty lists if there is none."""
    cells = set.intersection(*({(run.fold, run.seed) for run in setting.runs} for setting in settings))
    seeds_of = {fold: {seed for own, seed in cells if own == fold} for fold, _ in cells}
    if not seeds_of:
        return Cells([], [])
    choices = [seeds for seeds in [*seeds_of.values(), set.intersection(*seeds_of.values())] if seeds]
    rectangles = [
        Cells(sorted(seeds), sorted(fold for fold, own in seeds_of.items() if seeds <= own)) for seeds in choices
    ]
    return max(rectangles, key=lambda found: (len(found.seeds) * len(found.folds), len(found.folds)))


def pairs(
    settings: Sequence[Setting], unit: str, *, pooled: bool = False, metrics: Iterable[str] = METRICS
) -> tuple[dict[str, list[Pair]], list[str]]:
    """Return the differences in each metric, and a sentence for each pair that can't be compared.

    Args:
        settings: all pairs of them are compared, or each with the first if there are more than ALL_PAIRS.
        unit: "image", "group" or "fold".
        pooled: take the seeds' variance as the same for all settings, if they have two seeds in common or more.
        metrics: columns of `Run.per_image`.
    """
    comparable, left_out = [], []
    for base, other in itertools.combinations(settings, 2):
        if len(settings) > ALL_PAIRS and base is not settings[0]:
            continue
        cells = common_cells([base, other])
        reason = _why_incomparable(base, other, cells, unit)
        if reason:
            left_out.append(f"{other.name} and {base.name} are not compared: {reason}.")
        else:
            comparable.append((base, other, cells))
    uncorrected = []
    for metric in metrics:
        variance = pooled_variance(settings, metric, unit) if pooled else None
        image_variance = pooled_variance(settings, metric, "image") if pooled else None
        for base, other, cells in comparable:
            (a, b), without, images = _unit_scores([other, base], metric, cells, unit)
            result = by_image = compare(a, b, variance, folds=unit == "fold")
            if unit == "group":
                (image_a, image_b), _, _ = _unit_scores([other, base], metric, cells, "image")
                by_image = compare(image_a, image_b, image_variance)
            uncorrected.append((metric, Pair(base, other, result, by_image, without, cells, images)))
    values = [pair.result.p for _, pair in uncorrected if not pair.one_seed]
    corrections = zip(holm(values), holm_levels(values), strict=True)
    corrected: dict[str, list[Pair]] = {metric: [] for metric in metrics}
    for metric, pair in uncorrected:
        if not pair.one_seed:
            p, level = next(corrections)
            pair = replace(pair, p=p, level=level)
        corrected[metric].append(pair)
    return corrected, left_out


def pooled_variance(settings: Sequence[Setting], metric: str, unit: str) -> tuple[float, int] | None:
    """Return the variance over seeds of any difference, and its degrees of freedom.

    It is None if the settings don't have the same images and two seeds in common: then nothing can be pooled.
    """
    cells = common_cells(settings)
    if len(cells.seeds) < 2 or len({setting.images for setting in settings}) > 1 or settings[0].images is None:
        return None
    scores, _, _ = _unit_scores(settings, metric, cells, unit)
    return pooled_seeds(scores) if scores.size else None


def plans(differences: dict[str, list[Pair]], unit: str) -> list[Plan]:
    """Return a plan for each metric that has pairs with two seeds or more."""
    metric_plans = []
    compared = sum(not pair.one_seed for pairs in differences.values() for pair in pairs)
    for metric, pairs in differences.items():
        usable = [pair for pair in pairs if not pair.one_seed]
        if usable:
            parts = [components(_differences(pair, metric, unit)) for pair in usable]
            mean = Components(*np.mean([astuple(part) for part in parts], axis=0).tolist())
            units = min(pair.result.units for pair in usable)
            settings = {setting for pair in usable for setting in (pair.base, pair.other)}
            freedom = (len(settings) - 1) * (min(pair.result.seeds for pair in usable) - 1)
            least, most = (mean.at_quantile(tail, freedom, units) for tail in ((1 - LEVEL) / 2, (1 + LEVEL) / 2))
            metric_plans.append(Plan(metric, mean, least, most, units, (1 - LEVEL) / compared))
    return metric_plans


def groups_of(run: Run) -> list[str]:
    """Return the group of each image, in the order of their names; "" where an image is a group of its own."""
    table = run.per_image
    return table["group"].tolist() if "group" in table else [""] * len(table)


def _why_incomparable(base: Setting, other: Setting, cells: Cells, unit: str) -> str:
    """Return why two settings can't be compared; an empty string if they can."""
    one, two = base.images_by_fold, other.images_by_fold
    if one is None or two is None or any(one[fold] != two[fold] for fold in one.keys() & two.keys()):
        return "their test images differ"
    if not cells.seeds:
        return "they have no seed and fold in common" if unit == "fold" else "they have no seed in common"
    if unit == "fold" and len(cells.folds) == 1:
        return f"they have fold {cells.folds[0]} alone in common, which says nothing about others"
    for metric in METRICS:
        scores, _, _ = _unit_scores([base, other], metric, cells, unit)
        if scores.shape[-1] < 2:
            return f"there is only one test {unit}" if scores.shape[-1] else "no test image has a score in all runs"
    return ""


def _unit_scores(settings: Sequence[Setting], metric: str, cells: Cells, unit: str) -> tuple[np.ndarray, int, int]:
    """Return the scores by unit, KxSxN, of settings with the same images, and how many images lack one and have one.

    The score of a fold is the mean of its groups' if there are several, else of its images'.
    """
    units, without, images = [], 0, 0
    for fold in cells.folds:
        scores = np.stack([setting.scores(metric, cells.seeds, fold) for setting in settings])
        complete = np.isfinite(scores).all((0, 1))
        scores = scores[..., complete]
        without, images = without + int((~complete).sum()), images + int(complete.sum())
        run = next(run for run in settings[0].runs if run.fold == fold)
        if scores.size and (unit == "group" or (unit == "fold" and not _groups_unusable(run))):
            scores = group_means(scores, np.array(groups_of(run))[complete].tolist())
        if scores.size and unit == "fold":
            scores = scores.mean(-1, keepdims=True)
        units.append(scores)
    return np.concatenate(units, axis=-1), without, images


def _differences(pair: Pair, metric: str, unit: str) -> np.ndarray:
    """Return the differences of a pair, SxN by unit."""
    (other, base), _, _ = _unit_scores([pair.other, pair.base], metric, pair.cells, unit)
    return other - base


def _groups_unusable(run: Run) -> str:
    """Return why a run's groups can't be the unit; an empty string if they can."""
    groups = groups_of(run)
    if not any(groups):
        return "names no groups"
    return "has all images in one group" if len(set(groups)) == 1 else ""
