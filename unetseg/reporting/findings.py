"""The numbers of a report, computed from the tables of the run folders."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import astuple, dataclass, replace
from functools import cached_property

import numpy as np
import pandas as pd

from unetseg.evaluation.plots import band_labels, reuse_matrix
from unetseg.evaluation.statistics import (
    LEVEL,
    Comparison,
    Components,
    Smallest,
    best_median_worst,
    compare,
    components,
    group_means,
    holm,
    holm_levels,
    pooled_seeds,
    rates_with_interval,
    seeds_needed,
)
from unetseg.names import AUXILIARY, EXITS
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


@dataclass(frozen=True)
class RankedImage:
    """A test image ranked by its mean IoU over all settings and seeds."""

    rank: str
    """Best, median or worst; or a number."""
    name: str
    iou: float


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
    if unit != "image" or not any(any(_groups(run)) for run in sweep.runs):
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


def pairs(settings: Sequence[Setting], unit: str, *, pooled: bool = False) -> tuple[dict[str, list[Pair]], list[str]]:
    """Return the differences in each metric, and a sentence for each pair that can't be compared.

    Args:
        settings: all pairs of them are compared, or each with the first if there are more than ALL_PAIRS.
        unit: "image", "group" or "fold".
        pooled: take the seeds' variance as the same for all settings, if they have two seeds in common or more.
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
    for metric in METRICS:
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
    corrected: dict[str, list[Pair]] = {metric: [] for metric in METRICS}
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


def curve(setting: Setting, name: str) -> pd.DataFrame:
    """Return a scalar of metrics.csv by epoch, a row for each run; epochs that one run lacks are left out."""
    return _by_run(setting, lambda run: _by_epoch(run, name))


def ends(setting: Setting, name: str) -> list[tuple[float, bool]]:
    """Return of each run that has a scalar its value in the run's last epoch, and whether that was its greatest."""
    each = [values.to_numpy() for run in setting.runs if len(values := _by_epoch(run, name))]
    return [
        (float(values[-1]), bool(np.isfinite(values[-1]) and not (values[:-1] >= values[-1]).any())) for values in each
    ]


def class_iou(sweep: Sweep) -> dict[Setting, pd.DataFrame]:
    """Return for each setting the IoU of each class over all test pixels: a row for each seed, the mean of its folds.

    It is empty unless all runs have tables of the same classes, three or more: of two it is the foreground's IoU.
    """
    names, *others = {tuple(run.per_class.index) for run in sweep.runs}
    if others or len(set(names)) < max(3, len(names)):
        return {}
    tables = {
        s: pd.DataFrame([run.per_class.iou for run in s.runs], [run.seed for run in s.runs]) for s in sweep.settings
    }
    return {setting: table.groupby(level=0).mean() for setting, table in tables.items()}


def skip_share(setting: Setting, level: str) -> pd.DataFrame:
    """Return the skip share of a level by step, a row for each run."""
    return _by_run(setting, lambda run: _readings(run, "skip", "skip_share").get(level, pd.Series(dtype=float)))


def routed_blocks(sweep: Sweep) -> list[str]:
    """Return the encoder's first block and all blocks together, as named where the exits were read; none if nowhere."""
    for run in sweep.runs:
        rows = run.gradient_flow[run.gradient_flow.kind == "exit"]
        if len(rows):
            return list(dict.fromkeys((rows.block.iloc[0], rows.block.iloc[-1])))
    return []


def exit_shares(setting: Setting, block: str) -> list[pd.DataFrame]:
    """Return by which exit a block's gradient came, for each seed: a row for each step, a column for each exit."""
    tables = []
    for run in setting.runs:
        columns = {name: _readings(run, "exit", f"share_{name}") for name in (*EXITS, AUXILIARY)}
        table = pd.DataFrame({name: table[block] for name, table in columns.items() if block in table})
        if len(table):
            tables.append(table)
    return tables


def identity_shares(setting: Setting) -> list[pd.DataFrame]:
    """Return the identity share for each seed that has one: a row for each step, a column for each residual block."""
    tables = [_readings(run, "short", "identity_share") for run in setting.runs]
    return [table for table in tables if len(table)]


def reuse(setting: Setting) -> tuple[str, dict[str, pd.DataFrame]] | None:
    """Return the dense block with the most layers and its matrices "reuse" and "weight", as plots.reuse_matrix.

    They are medians over the readings and means over the seeds; None where none was read.
    """
    flow = [run.gradient_flow[run.gradient_flow.kind == "dense"] for run in setting.runs]
    flow = [rows for rows in flow if len(rows)]
    if not flow:
        return None
    block = str(flow[0].groupby("block").metric.nunique().idxmax())
    medians = [rows[rows.block == block].groupby("metric").value.median() for rows in flow]
    mean = pd.concat(medians).groupby(level=0).mean()
    matrices = {name: reuse_matrix(mean, name) for name in ("reuse", "weight")}
    reuse = matrices["reuse"]  # a stranger's table may hold other metrics
    return (block, matrices) if "out" in reuse.columns and "0" in reuse.index else None


def gradient_rms(setting: Setting) -> pd.DataFrame:
    """Return log10 of each block's gradient rms by step, as the mean over the seeds; nan where a seed's rms is 0."""
    tables = [_readings(run, "block", "rms") for run in setting.runs]
    tables = [np.log10(table.where(table > 0)).T for table in tables if len(table)]
    if not tables:
        return pd.DataFrame()
    steps = sorted(set.intersection(*(set(table.columns) for table in tables)))
    mean: pd.DataFrame = sum(table[steps] for table in tables) / len(tables)  # type: ignore[assignment]
    return mean.loc[tables[0].index]


def vanishing(sweep: Sweep) -> pd.DataFrame:
    """Return the medians over the readings of each run's vanishing indices, beside its IoU over the set."""
    rows = []
    for setting in sweep.settings:
        for run in setting.runs:
            net = run.gradient_flow[run.gradient_flow.kind == "net"]
            if len(net):
                medians = net.groupby("metric").value.median()
                rows.append({"setting": setting.name, "seed": run.seed, "iou": run.summary["test/iou"], **medians})
    columns = ["setting", "seed", "iou", "vanishing_slope", "centre_dip"]
    return pd.DataFrame(rows, columns=columns)


def edge_errors(setting: Setting, unit: str) -> pd.DataFrame:
    """Return the share of wrong pixels over all seeds by distance to the edge: 1, 2, 3–4, ... ≥ 33.

    The rows are rate, low and high: the ends of its interval over units (of these trained models). The ends are nan if
    the runs have no counts of each image, or different images, and for folds: few of them can't be resampled.
    """
    paths = [run.folder.edge_distance for run in setting.runs]
    if not all(path.exists() for path in paths):
        return pd.DataFrame()
    table = pd.concat([pd.read_csv(path) for path in paths]).groupby(["from_px", "to_px"])[["pixels", "errors"]].sum()
    bands = band_labels(table.index)
    rate = (table.errors / table.pixels.where(table.pixels > 0)).to_numpy()
    without_interval = pd.DataFrame([rate, np.nan * rate, np.nan * rate], ["rate", "low", "high"], bands)
    paths = [run.folder.edge_distance_per_image for run in setting.runs]
    if setting.images is None or unit == "fold" or not all(path.exists() for path in paths):
        return without_interval
    counts = pd.concat([pd.read_csv(path, dtype={"name": str}) for path in paths])
    by_image = counts.groupby(["name", "from_px"])[["pixels", "errors"]].sum()  # in the order of setting.images
    of_these = list(by_image.index.unique("name")) == sorted(setting.images)
    if not of_these or len(by_image) != len(setting.images) * len(bands):
        return without_interval
    groups = _groups(setting.runs[0]) if unit == "group" else [""] * len(setting.images)
    rates = rates_with_interval(by_image.to_numpy().reshape(len(groups), -1, 2), groups)
    return pd.DataFrame(rates, ["rate", "low", "high"], bands)


def lesions(sweep: Sweep) -> list[tuple[Setting, Run, str, pd.DataFrame, pd.DataFrame]]:
    """Return the results of evaluate lesion=true: setting, run, evaluation, lesion.csv and shapley.csv."""
    results = []
    for setting in sweep.settings:
        for run in setting.runs:
            for path in sorted(run.folder.path.glob("evaluation/*/lesion.csv")):
                shapley = path.with_name("shapley.csv")
                if shapley.exists():
                    losses = pd.read_csv(path, dtype={"levels": str})
                    results.append((setting, run, path.parent.name, losses, pd.read_csv(shapley)))
    return results


def levels(sweep: Sweep) -> list[str]:
    """Return the levels of long skips in the readings of the gradient flow, finest first."""
    return sorted({level for run in sweep.runs for level in _readings(run, "skip", "skip_share")})


def ranked_images(sweep: Sweep) -> list[RankedImage]:
    """Return the best, median and worst images; none if the settings have different images."""
    iou = _mean_iou(sweep)
    ranks = best_median_worst(iou.to_numpy(), each=2)
    return [RankedImage(rank, iou.index[i], float(iou.iloc[i])) for i, rank in ranks.items()]


def worst_first(sweep: Sweep) -> list[RankedImage]:
    """Return all images from the worst to the best, ranked 1, 2, ...; none if the settings have different images."""
    iou = _mean_iou(sweep).sort_values(kind="stable")
    return [RankedImage(str(rank), name, value) for rank, (name, value) in enumerate(iou.items(), start=1)]


def _mean_iou(sweep: Sweep) -> pd.Series:
    """Return each image's mean IoU over settings and seeds, where it has one, by the images' names.

    In a cross-validation they are the images of the fold of the first run.
    """
    fold = sweep.settings[0].runs[0].fold
    by_fold = [setting.images_by_fold or {} for setting in sweep.settings]
    names = by_fold[0].get(fold)
    if names is None or any(images.get(fold) != names for images in by_fold):
        return pd.Series(dtype=float)
    means = [setting.scores("iou", setting.seeds, fold).mean(0) for setting in sweep.settings]
    iou = pd.Series(np.mean(means, axis=0), list(names))
    return iou[np.isfinite(iou)]


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
            scores = group_means(scores, np.array(_groups(run))[complete].tolist())
        if scores.size and unit == "fold":
            scores = scores.mean(-1, keepdims=True)
        units.append(scores)
    return np.concatenate(units, axis=-1), without, images


def _differences(pair: Pair, metric: str, unit: str) -> np.ndarray:
    """Return the differences of a pair, SxN by unit."""
    (other, base), _, _ = _unit_scores([pair.other, pair.base], metric, pair.cells, unit)
    return other - base


def _groups(run: Run) -> list[str]:
    """Return the group of each image, in the order of their names; "" where an image is a group of its own."""
    table = run.per_image
    return table["group"].tolist() if "group" in table else [""] * len(table)


def _groups_unusable(run: Run) -> str:
    """Return why a run's groups can't be the unit; an empty string if they can."""
    groups = _groups(run)
    if not any(groups):
        return "names no groups"
    return "has all images in one group" if len(set(groups)) == 1 else ""


def _by_epoch(run: Run, name: str) -> pd.Series:
    """Return a scalar of metrics.csv by epoch."""
    rows = run.metrics[run.metrics.name == name]
    return rows.groupby(rows.epoch.astype(int)).value.mean()


def _readings(run: Run, kind: str, metric: str) -> pd.DataFrame:
    """Return a metric of gradient_flow.csv: a row for each step, a column for each block in the file's order."""
    flow = run.gradient_flow
    rows = flow[(flow.kind == kind) & (flow.metric == metric)]
    table = rows.pivot_table(index="step", columns="block", values="value", aggfunc="last")
    return table[list(dict.fromkeys(rows.block))]


def _by_run(setting: Setting, of_run: Callable[[Run], pd.Series]) -> pd.DataFrame:
    return pd.DataFrame([of_run(run) for run in setting.runs]).dropna(axis=1).astype(float)
