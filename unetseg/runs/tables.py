"""The tables of a run folder as DataFrames."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from unetseg.runs.folder import GRADIENT_FLOW_COLUMNS, METRICS_COLUMNS, RunFolder

TRIALS_COLUMNS = ("trial", "state", "val/iou", "validations", "folder")
"""Those of trials.csv before the options that are searched."""
TRIAL_STATES = ("finished", "pruned", "running", "failed")
"""The words of its second column, in the order in which trials are ranked."""


def read_per_image(run: RunFolder) -> pd.DataFrame:
    """Return per_image.csv with the images' names as the index."""
    return read_csv(run.per_image).set_index("name").sort_index()


def read_per_class(run: RunFolder) -> pd.DataFrame:
    """Return per_class.csv with the classes' names as the index; without rows if there is no such file."""
    return _csv_or_empty(run.per_class, ("class", "iou")).set_index("class")


def read_metrics(run: RunFolder) -> pd.DataFrame:
    """Return metrics.csv; without rows if there is no such file."""
    return _csv_or_empty(run.metrics, METRICS_COLUMNS)


def read_gradient_flow(run: RunFolder) -> pd.DataFrame:
    """Return gradient_flow.csv; without rows if there is no such file."""
    return _csv_or_empty(run.gradient_flow, GRADIENT_FLOW_COLUMNS)


def read_trials(path: Path, options: Sequence[str]) -> pd.DataFrame:
    """Return a search's trials.csv: numbers of the trial, its best val/iou in 0..1 or nan, and validations; else texts.

    Args:
        path: of the file.
        options: the columns of options that it has to have.

    Raises:
        ValueError: it lacks a column, or holds something else.
    """
    trials = pd.read_csv(path, dtype=str, keep_default_na=False)
    if absent := [column for column in (*TRIALS_COLUMNS, *options) if column not in trials]:
        raise ValueError(f"it lacks {', '.join(absent)}")
    for column in ("trial", "validations"):
        trials[column] = trials[column].astype(int)
    trials["val/iou"] = pd.to_numeric(trials["val/iou"].mask(trials["val/iou"] == ""))
    finished = trials.loc[trials.state == "finished", "val/iou"]
    if not set(trials.state) <= set(TRIAL_STATES) or not finished.between(0, 1).all():
        raise ValueError("it has a state or a score that no trial has")
    return trials


def read_csv(path: Path) -> pd.DataFrame:
    """Return a table; its text columns are read as text, since a picture may be called NA or 007."""
    words = {column: str for column in ("name", "group", "class", "levels", "kind", "block", "metric", "cut", "shift")}
    numbers = [column for column in pd.read_csv(path, nrows=0).columns if column not in words]
    empty = {column: ["", "nan", "NaN"] for column in numbers}
    return pd.read_csv(path, dtype=words, keep_default_na=False, na_values=empty)


def _csv_or_empty(path: Path, columns: Sequence[str]) -> pd.DataFrame:
    return read_csv(path) if path.exists() else pd.DataFrame(columns=columns)
