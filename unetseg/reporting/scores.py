"""The scores of settings by epoch, class, distance to the edge, cut skip and image."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

from unetseg.evaluation.score_plots import band_labels
from unetseg.evaluation.statistics import best_median_worst, rates_with_interval
from unetseg.reporting.comparisons import groups_of
from unetseg.reporting.results import Run, Setting, Sweep


@dataclass(frozen=True)
class RankedImage:
    """A test image ranked by its mean IoU over all settings and seeds."""

    rank: str
    """Best, median or worst; or a number."""
    name: str
    iou: float


def curve(setting: Setting, name: str) -> pd.DataFrame:
    """Return a scalar of metrics.csv by epoch, a row for each run; epochs that one run lacks are left out."""
    return pd.DataFrame([_by_epoch(run, name) for run in setting.runs]).dropna(axis=1).astype(float)


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
    groups = groups_of(setting.runs[0]) if unit == "group" else [""] * len(setting.images)
    rates = rates_with_interval(by_image.to_numpy().reshape(len(groups), -1, 2), groups)
    return pd.DataFrame(rates, ["rate", "low", "high"], bands)


def lesions(sweep: Sweep) -> list[tuple[Setting, Run, str, pd.DataFrame, pd.DataFrame]]:
    """Return the results of evaluate lesion=true: setting, run, evaluation, lesion.csv and shapley.csv."""
    results = []
    for setting in sweep.settings:
        for run in setting.runs:
            for path in run.evaluations("lesion.csv"):
                shapley = path.with_name("shapley.csv")
                if shapley.exists():
                    losses = pd.read_csv(path, dtype={"levels": str})
                    results.append((setting, run, path.parent.name, losses, pd.read_csv(shapley)))
    return results


def freeu(sweep: Sweep) -> list[tuple[Setting, Run, str, pd.DataFrame]]:
    """Return the results of evaluate freeu=[b,s]: setting, run, evaluation and freeu.csv."""
    return [
        (setting, run, path.parent.name, pd.read_csv(path, dtype={"levels": str}))
        for setting in sweep.settings
        for run in setting.runs
        for path in run.evaluations("freeu.csv")
    ]


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


def _by_epoch(run: Run, name: str) -> pd.Series:
    """Return a scalar of metrics.csv by epoch."""
    rows = run.metrics[run.metrics.name == name]
    return rows.groupby(rows.epoch.astype(int)).value.mean()
