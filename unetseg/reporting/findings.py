"""The numbers of a report, computed from the tables of the run folders."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pandas as pd

from unetseg.evaluation.plots import band_labels
from unetseg.evaluation.statistics import LEVEL, Comparison, best_median_worst, compare, holm
from unetseg.reporting.results import Run, Setting, Sweep

METRICS = {"iou": "IoU per image", "boundary_iou": "Boundary IoU per image"}
"""What settings are compared in, image by image: columns of per_image.csv."""
ALL_PAIRS = 5
"""Up to so many settings each is compared with each, beyond that each with the first."""


@dataclass(frozen=True)
class Pair:
    """Two settings on the same images and seeds; differences are `other` minus `base`."""

    base: Setting
    other: Setting
    result: Comparison
    p: float
    """Holm-corrected within the metric."""

    @property
    def name(self) -> str:
        """Return what is subtracted from what."""
        return f"{self.other.name} − {self.base.name}"

    @property
    def excludes_zero(self) -> bool:
        """Return whether the interval leaves 0 out."""
        return self.result.low > 0 or self.result.high < 0

    @property
    def shown(self) -> bool:
        """Return whether a difference was shown: the corrected p is never below that of the interval."""
        return self.p < 1 - LEVEL


@dataclass(frozen=True)
class Picked:
    """A test image chosen by its mean IoU over all settings: best, median or worst."""

    rank: str
    name: str
    iou: float


def mean_with_interval(setting: Setting, metric: str) -> Comparison | None:
    """Return the mean over seeds and images with its interval, None where the seeds have different images."""
    if setting.images is None or len(setting.images) < 2:
        return None
    scores = setting.scores(metric)
    return compare(scores, np.zeros_like(scores))


def pairs(settings: list[Setting], metric: str) -> tuple[list[Pair], list[str]]:
    """Return the differences in a metric, and a sentence for each pair that can't be compared."""
    together = itertools.combinations(settings, 2)
    chosen = [pair for pair in together if len(settings) <= ALL_PAIRS or pair[0] is settings[0]]
    found, left_out = [], []
    for base, other in chosen:
        seeds = sorted(set(base.seeds) & set(other.seeds))
        name = f"{other.name} and {base.name}"
        if base.images is None or base.images != other.images:
            left_out.append(f"{name} are not compared: their test images differ.")
        elif len(base.images) < 2:
            left_out.append(f"{name} are not compared: there is only one test image.")
        elif not seeds:
            left_out.append(f"{name} are not compared: they have no seed in common.")
        else:
            found.append((base, other, compare(other.scores(metric, seeds), base.scores(metric, seeds))))
    corrected = holm([result.p for *_, result in found]) if found else []
    return [Pair(*pair, p=p) for pair, p in zip(found, corrected, strict=True)], left_out


def curve(setting: Setting, name: str) -> pd.DataFrame:
    """Return a scalar of metrics.csv by epoch, a row for each seed; epochs that a seed lacks are left out."""

    def of_run(run: Run) -> pd.Series:
        rows = run.metrics[run.metrics.name == name]
        return rows.groupby(rows.epoch.astype(int)).value.mean()

    return _by_seed(setting, of_run)


def skip_share(setting: Setting, level: str) -> pd.DataFrame:
    """Return the skip share of a level by step, a row for each seed."""
    return _by_seed(setting, lambda run: _readings(run, "skip", "skip_share").get(level, pd.Series(dtype=float)))


def gradient_rms(setting: Setting) -> pd.DataFrame:
    """Return log10 of each block's gradient rms by step, the mean over the seeds; nan where one of them is 0."""
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


def edge_errors(setting: Setting) -> pd.DataFrame:
    """Return the share of wrong pixels over all seeds, one row, by distance to the edge: 1, 2, 3–4, ... ≥ 33."""
    paths = [run.folder.edge_distance for run in setting.runs]
    if not all(path.exists() for path in paths):
        return pd.DataFrame()
    table = pd.concat([pd.read_csv(path) for path in paths]).groupby(["from_px", "to_px"])[["pixels", "errors"]].sum()
    bands = band_labels(table.index)
    return pd.DataFrame([(table.errors / table.pixels.where(table.pixels > 0)).to_numpy()], columns=bands)


def lesions(sweep: Sweep) -> list[tuple[Setting, Run, str, pd.DataFrame, pd.DataFrame]]:
    """Return what evaluate lesion=true found below the runs: setting, run, evaluation, lesion.csv, shapley.csv."""
    return [
        (setting, run, path.parent.name, pd.read_csv(path, dtype={"levels": str}), pd.read_csv(path.with_name(worth)))
        for setting in sweep.settings
        for run in setting.runs
        for path in sorted(run.folder.path.glob("evaluation/*/lesion.csv"))
        if path.with_name(worth := "shapley.csv").exists()
    ]


def levels(sweep: Sweep) -> list[str]:
    """Return the levels of long skips that readings of the gradient flow name, finest first."""
    return sorted({level for run in sweep.runs for level in _readings(run, "skip", "skip_share")})


def picked_images(sweep: Sweep, each: int = 2) -> list[Picked]:
    """Return images by their mean IoU over settings and seeds; none where the settings have different images."""
    names = sweep.settings[0].images
    if names is None or any(setting.images != names for setting in sweep.settings):
        return []
    iou = np.mean([setting.scores("iou").mean(0) for setting in sweep.settings], axis=0)
    return [Picked(rank, names[place], float(iou[place])) for place, rank in best_median_worst(iou, each).items()]


def _readings(run: Run, kind: str, metric: str) -> pd.DataFrame:
    """Return a metric of gradient_flow.csv, a row for each step and a column for each block in their own order."""
    flow = run.gradient_flow
    rows = flow[(flow.kind == kind) & (flow.metric == metric)]
    table = rows.pivot_table(index="step", columns="block", values="value", aggfunc="last")
    return table[list(dict.fromkeys(rows.block))]


def _by_seed(setting: Setting, of_run: Callable[[Run], pd.Series]) -> pd.DataFrame:
    return pd.DataFrame([of_run(run) for run in setting.runs], index=setting.seeds).dropna(axis=1).astype(float)
