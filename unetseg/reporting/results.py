"""Reads a folder of runs: the settings, their finished runs, and the cells that are not finished.

No path in a run's files is trusted, as folders may have been moved. No file is trusted either: a run with a damaged
file is left out and named, and the others are reported.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from unetseg.errors import UserError, first_line
from unetseg.evaluation.style import COLOURS
from unetseg.files import read_json
from unetseg.names import shown
from unetseg.options import plain_yaml, recorded
from unetseg.options.settings import NO_DIFFERENCE, axes_of, setting_name, variant
from unetseg.runs.folder import RunFolder
from unetseg.runs.tables import (
    read_csv,
    read_gradient_flow,
    read_metrics,
    read_per_class,
    read_per_image,
    read_trials,
)

STYLES = ("-", "--", ":", "-.")
"""The settings' line styles, one for each round through the colours."""
NO_AXES = (
    *NO_DIFFERENCE,
    *("seed", "data.fold", "sweep.", "logger", "wandb.", "gradients."),
    *("trainer.log_every_n_steps", "trainer.default_root_dir"),
)
"""Options that don't change what a training computes: runs that differ in these only belong to one setting."""
TABLES = {
    "per_image.csv": (("name",), ("iou", "dice", "boundary_iou")),
    "per_class.csv": (("class",), ("iou", "pixels")),
    "edge_distance.csv": ((), ("from_px", "to_px", "pixels", "errors")),
    "edge_distance_per_image.csv": (("name",), ("from_px", "pixels", "errors")),
    "metrics.csv": (("name",), ("step", "epoch", "value")),
    "gradient_flow.csv": (("kind", "block", "metric"), ("step", "epoch", "value")),
    "lesion.csv": (("cut", "levels"), ("iou_loss", "boundary_iou_loss")),
    "shapley.csv": (("cut", "level"), ("iou", "boundary_iou")),
    "shift_per_image.csv": (("name", "shift"), ("strength", "iou", "boundary_iou")),
    "freeu.csv": (("part", "levels"), ("b", "s", "iou_difference", "boundary_iou_difference")),
}
"""The tables of a run that are read, each with its required columns: of text, and of numbers."""
OF_EVALUATIONS = ("lesion.csv", "shapley.csv", "shift_per_image.csv", "freeu.csv")
"""Those that lie in the folders of a run's evaluations."""
NUMBERS = ("parameters", "flops", "activation_memory", "images_per_second")
"""Entries of a summary on a run's cost; each may be absent."""
MAY_BE_EMPTY = ("metrics.csv", "gradient_flow.csv")
"""Tables that may have no rows."""
SHARES = {
    "per_image.csv": ["iou", "dice", "boundary_iou"],
    "per_class.csv": ["iou"],
    "shift_per_image.csv": ["iou", "boundary_iou"],
}
"""Columns of tables whose values are in 0..1, or nan."""
LARGEST_COUNT = 10**9
LARGEST_NUMBER = 2**63
"""Numbers of a summary are below it."""


class Damaged(Exception):
    """A run can't be reported; the message names the file."""


@dataclass(frozen=True)
class Run:
    """A finished run."""

    folder: RunFolder
    place: str
    """Its path relative to the folder of the report."""
    options: dict[str, Any]
    """Its config.yaml."""
    summary: dict[str, Any]

    @property
    def tested(self) -> Path:
        """Return the checkpoint that the scores of the summary are of."""
        return self.folder.checkpoints / (self.summary.get("checkpoint") or "best.ckpt")

    def evaluations(self, table: str) -> list[Path]:
        """Return a table in the folders of the run's evaluations, but for those of its other checkpoint."""
        paths = sorted(self.folder.path.glob(f"evaluation/*/{table}"))
        return [path for path in paths if _evaluated(path.parent) in (None, self.tested.name)]

    @property
    def seed(self) -> int:
        return int(self.options["seed"])

    @property
    def fold(self) -> int:
        """Return which fold of a cross-validation is the test split; 0 where there are no folds."""
        return int(self.options["data"]["fold"]) if self.folds else 0

    @property
    def folds(self) -> int:
        """Return of how many folds; 0 where there are none."""
        return int(self.options.get("data", {}).get("folds") or 0)

    @cached_property
    def per_image(self) -> pd.DataFrame:
        """Return per_image.csv with the images' names as the index."""
        return read_per_image(self.folder)

    @cached_property
    def per_class(self) -> pd.DataFrame:
        """Return per_class.csv with the classes' names as the index; without rows if there is no such file."""
        return read_per_class(self.folder)

    @cached_property
    def metrics(self) -> pd.DataFrame:
        """Return metrics.csv; without rows if there is no such file."""
        return read_metrics(self.folder)

    @cached_property
    def gradient_flow(self) -> pd.DataFrame:
        """Return gradient_flow.csv; without rows if there is no such file."""
        return read_gradient_flow(self.folder)

    @cached_property
    def readings(self) -> dict[tuple[str, str], pd.DataFrame]:
        """Return the rows of gradient_flow.csv of each kind and metric."""
        by_both = self.gradient_flow.groupby(["kind", "metric"], sort=False)
        return {(str(kind), str(metric)): rows for (kind, metric), rows in by_both}


@dataclass(frozen=True, eq=False)
class Setting:
    """Finished runs that differ only in their seed and, in a cross-validation, their fold."""

    name: str
    colour: str
    style: str
    runs: list[Run]
    """By fold and seed, neither pair twice."""

    @property
    def seeds(self) -> list[int]:
        return sorted({run.seed for run in self.runs})

    @property
    def folds(self) -> list[int]:
        return sorted({run.fold for run in self.runs})

    @cached_property
    def images_by_fold(self) -> dict[int, tuple[str, ...]] | None:
        """Return the names of each fold's test images; None if its runs differ in them or a name occurs twice."""
        tested = {fold: {tuple(run.per_image.index) for run in self.runs if run.fold == fold} for fold in self.folds}
        names = [name for of_runs in tested.values() for images in of_runs for name in images]
        if any(len(of_runs) > 1 for of_runs in tested.values()) or len(set(names)) < len(names):
            return None
        return {fold: next(iter(of_runs)) for fold, of_runs in tested.items()}

    @property
    def images(self) -> tuple[str, ...] | None:
        """Return the names of all test images, fold after fold; None as `images_by_fold`."""
        by_fold = self.images_by_fold
        return None if by_fold is None else tuple(name for images in by_fold.values() for name in images)

    def scores(self, metric: str, seeds: Sequence[int], fold: int) -> np.ndarray:
        """Return a column of per_image.csv, SxN: a row for each seed, the images in the order of `images_by_fold`."""
        runs = [run for run in self.runs if run.fold == fold and run.seed in seeds]
        return np.stack([run.per_image[metric].to_numpy(float) for run in runs])

    def mean(self, name: str) -> float:
        """Return the mean over the runs of an entry of the summaries; nan if a summary lacks it."""
        return float(np.mean([run.summary.get(name, np.nan) for run in self.runs]))


@dataclass(frozen=True)
class Sweep:
    """The settings of a folder of runs, and what is left out of the report."""

    settings: list[Setting]
    absent: list[tuple[str, str]]
    """Cells that are not in the report, each with its state: missing, unfinished or damaged."""
    repeated: list[str]
    """Places of runs that are left out because a later run has the same options, fold and seed."""
    record: dict[str, Any]
    """The content of sweep.json, empty if there is none."""
    damaged: list[tuple[str, str]] = field(default_factory=list)
    """Places of runs that are left out because of a damaged file, each with the reason."""
    trials: pd.DataFrame = field(default_factory=pd.DataFrame)
    """Those of a search by their numbers, see `read_trials`; without rows where it is none."""

    @property
    def runs(self) -> list[Run]:
        return [run for setting in self.settings for run in setting.runs]


def read(root: Path) -> Sweep:
    """Read the runs below a folder; raise a UserError if none is finished."""
    record = _read_record(root / "sweep.json")
    trials = _read_trials(root / "trials.csv", record["search"]) if "search" in record else pd.DataFrame()
    entries = list(_run_folders(root))
    runs = [run for run in entries if isinstance(run, Run)]
    unfinished = [place for place in entries if isinstance(place, str)]
    damaged = [entry for entry in entries if isinstance(entry, tuple)]
    if not runs:
        count = f"{len(unfinished)} run folders, none of them finished" if unfinished else "no run folder"
        problems = [f"{shown(place)} can't be used: {reason}" for place, reason in damaged]
        raise UserError(
            "; ".join(problems) if problems else f"runs={shown(root)} holds {count}",
            accepted="a folder with runs below it that have a summary.json",
            advice="the `output` of python -m unetseg.train or unetseg.ablate",
        )
    cells = [cell["name"] for cell in record.get("cells", [])]
    places = [*unfinished, *(place for place, _ in damaged), *(run.place for run in runs)]
    known = {place.rpartition("/")[2] for place in places}
    absent = [(name, "missing") for name in cells if name not in known]
    listed = set(trials.folder) if len(trials) else set()  # of a trial that was pruned or failed there is a row
    absent += [(place, "unfinished") for place in unfinished if place not in listed]
    absent += [(place, "damaged") for place, _ in damaged]
    by_name: dict[str, dict[tuple[int, int], Run]] = {}
    repeated = []
    for run, name in zip(runs, setting_names([run.options for run in runs]), strict=True):
        own = by_name.setdefault(name, {})
        cell = run.fold, run.seed
        if cell in own:
            repeated.append(own[cell].place)  # names end with the time: the last one counts
        own[cell] = run

    def order(name: str) -> tuple[int, bool, str]:
        folders = {run.folder.path.name for run in by_name[name].values()}
        position = next((place for place, cell in enumerate(cells) if cell in folders), len(cells))
        return position, name.split()[0] != "concat", name

    settings = [
        Setting(name, COLOURS[number % 8], STYLES[number // 8 % 4], [run for _, run in sorted(by_name[name].items())])
        for number, name in enumerate(sorted(by_name, key=order))
    ]
    sweep = Sweep(settings, absent, repeated, record, damaged, trials)
    for run in sweep.runs:
        found = {path.parent for table in OF_EVALUATIONS for path in run.folder.path.glob(f"evaluation/*/{table}")}
        for folder in sorted(found - {path.parent for table in OF_EVALUATIONS for path in run.evaluations(table)}):
            reason = f"it is of {_evaluated(folder)}, and the scores of the run are of {run.tested.name}"
            damaged.append((f"{run.place}/evaluation/{folder.name}", reason))
    return sweep


def _evaluated(folder: Path) -> str | None:
    """Return which checkpoint an evaluation is of, None if unknown; earlier ones name the folder, for its best.ckpt."""
    try:
        name = Path(str(read_json(folder / "summary.json").get("checkpoint"))).name
    except ValueError:
        return None
    return name if name == "last.ckpt" else "best.ckpt"


def setting_names(options: list[dict[str, Any]]) -> list[str]:
    """Return the name of each run's setting: its model's variant, and key=value of other options that differ."""
    axes = axes_of(options, NO_AXES)
    return [" ".join(setting_name(run, axes)) for run in options]


def _run_folders(root: Path) -> Iterator[Run | str | tuple[str, str]]:
    """Yield the runs at or below `root`; folders inside a run are not searched.

    Yields:
        A finished run; the place of an unfinished run; or the place of a damaged run and the reason.
    """
    for folder, folders, files in os.walk(root):
        folders.sort()
        if "config.yaml" not in files:
            continue
        run = RunFolder(folder)
        place = os.path.relpath(folder, root).replace(os.sep, "/")
        place = Path(folder).resolve().name if place == "." else place
        try:
            options = _read_options(run.config)
        except Damaged as error:
            if run.summary.exists():  # else the config.yaml is another program's
                folders.clear()
                yield place, str(error)
            continue
        folders.clear()
        try:
            if run.summary.exists() and run.per_image.exists():
                summary = _read_summary(run.summary)
                _check_tables(run, summary)
                yield Run(run, place, options, summary)
            else:
                yield place
        except Damaged as error:
            yield place, str(error)


EARLIER: dict[str, Any] = {
    "data": {
        **{"fit": "squash", "crop": None, "scale": 1.0, "foreground": 0.33, "crops": None},
        **{"channels": None, "mean": None, "std": None, "shown": None, "bands": None},
    },
    "optimizer": {
        **{"name": "adamw", "arguments": None, "schedule": "cosine", "warmup_epochs": 0.0, "patience": 5, "ema": None},
        **recorded.EARLIER["optimizer"],
    },
    "checkpoint": recorded.EARLIER["checkpoint"],
    **{"class_weights": None, "boundary_weight": None, "early_stopping": None},
}
"""What runs did before there were these options: they are no seeds of a setting with others."""


def _read_options(path: Path) -> dict[str, Any]:
    """Return a run's config.yaml; raise Damaged if it is not a run's."""
    try:
        options = plain_yaml.read(path)
        variant(options["model"])
        if type(options["seed"]) is not int or not isinstance(options["data"]["name"], str):
            raise TypeError("it has no seed or no data")
        if any(type(options["data"].get(key) or 0) is not int for key in ("folds", "fold")):
            raise TypeError("data.folds or data.fold is no number")
        for key, earlier in EARLIER.items():
            options[key] = earlier | options.get(key, {}) if isinstance(earlier, dict) else options.get(key, earlier)
    except (ValueError, TypeError, LookupError, AttributeError, RecursionError) as error:
        raise Damaged(f"config.yaml can't be read: {shown(first_line(error))}") from None
    return options


def _read_summary(path: Path) -> dict[str, Any]:
    """Return summary.json; raise Damaged if an entry is of the wrong type."""
    summary = _read_json(path)
    for name in ("test/iou", "test/images", "epochs", "seconds", *(cost for cost in NUMBERS if cost in summary)):
        value = summary.get(name, 0 if name != "test/iou" else None)
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise Damaged(f"{path.name}: {name} is no number")
        unscored = name == "test/iou" and value != value  # nan, where all pixels are ignored
        most = 1 if name == "test/iou" else LARGEST_NUMBER
        if not unscored and not 0 <= value <= most:
            raise Damaged(f"{path.name}: {name} is no number that a run can have")
    if summary.get("checkpoint") not in (None, "best.ckpt", "last.ckpt"):
        raise Damaged(f"{path.name}: checkpoint is none of a run")
    commit = summary.get("git_commit")
    if not isinstance(summary.get("versions", {}), dict) or not isinstance(summary.get("command", ""), str):
        raise Damaged(f"{path.name}: versions or command are of another kind")
    if commit is not None and not isinstance(commit, str):
        raise Damaged(f"{path.name}: git_commit is no text")
    return summary


def _read_record(path: Path) -> dict[str, Any]:
    """Return sweep.json, or an empty dictionary if there is none; raise a UserError if it is damaged."""
    if not path.exists():
        return {}
    try:
        record = _read_json(path)
        cells = record.get("cells", [])
        if not all(isinstance(cell["name"], str) for cell in cells) or not isinstance(record.get("command", ""), str):
            raise Damaged("it is of another kind")
        if "search" in record:
            _check_search(record["search"])
    except (Damaged, TypeError, LookupError, AttributeError) as error:
        raise _unreadable(path, error) from None
    return record


def _check_search(search: dict[str, Any]) -> None:
    """Raise Damaged, or another error, unless what sweep.json says of a search is of the right types."""
    words = [*search["space"], *search["space"].values(), *search.get("importance", {}), search.get("next", "")]
    shares = [*search.get("importance", {}).values(), search["trials"]]
    if not search["space"] or not all(isinstance(word, str) for word in words):
        raise Damaged("its search is of another kind")
    if not all(type(share) in (int, float) and 0 <= share < LARGEST_NUMBER for share in shares):
        raise Damaged("its search has numbers of another kind")


def _read_trials(path: Path, search: dict[str, Any]) -> pd.DataFrame:
    """Return trials.csv; raise a UserError if it is damaged, or no trial is finished."""
    try:
        trials = read_trials(path, [*search["space"]])
    except (OSError, ValueError, LookupError) as error:
        raise _unreadable(path, error) from None
    if "finished" not in set(trials.state):
        problem = f"none of the search's {len(trials)} trials is finished"
        raise UserError(problem, accepted="a search with finished trials", advice="the same command, which goes on")
    return trials


def _unreadable(path: Path, error: Exception) -> UserError:
    reason = shown(first_line(error))
    return UserError(f"{shown(path)} can't be read: {reason}", accepted="the file as it was written by this software")


def _read_json(path: Path) -> dict[str, Any]:
    """Return the object of a JSON file; raise Damaged if the file is too large or holds none."""
    try:
        return read_json(path)
    except ValueError as error:
        raise Damaged(f"{path.name} {shown(str(error))}") from None


def _check_tables(run: RunFolder, summary: dict[str, Any]) -> None:
    """Raise Damaged if a table lacks required columns, or is shorter than the run's summary says."""
    paths = [path for name in TABLES if (path := run.path / name).exists()]
    paths += [path for name in OF_EVALUATIONS for path in run.path.glob(f"evaluation/*/{name}")]
    for path in paths:
        name = path.relative_to(run.path)
        table = _read_table(path, str(name))
        if path == run.per_image and len(table) != summary.get("test/images", len(table)):
            raise Damaged(f"{name} has {len(table)} rows, and summary.json says {summary['test/images']} test images")
        shares = table[SHARES.get(path.name, [])]
        if ((shares < 0) | (shares > 1)).any(axis=None):
            raise Damaged(f"{name} has scores that are not in 0..1")
        if path == run.metrics and len(table) and table.epoch.max() > LARGEST_COUNT:
            raise Damaged(f"{name} has an epoch that no run can have")
        if path == run.metrics and len(table) and table.epoch.max() + 1 < summary.get("epochs", 0):
            raise Damaged(
                f"{name} ends in epoch {table.epoch.max():g}, and summary.json says {summary['epochs']} epochs"
            )


def _read_table(path: Path, name: str) -> pd.DataFrame:
    """Return a table; raise Damaged if it is cut short or lacks columns."""
    if not path.is_file():
        raise Damaged(f"{name} is no file")
    try:
        with path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - 1))
            end = file.read()
        table = read_csv(path)
    except (OSError, ValueError) as error:
        raise Damaged(f"{name} can't be read: {shown(first_line(error))}") from None
    words, numbers = TABLES[path.name]
    absent = [column for column in (*words, *numbers) if column not in table]
    if absent:
        raise Damaged(f"{name} lacks {', '.join(absent)}")
    if end != b"\n":
        raise Damaged(f"{name} is cut short")
    if not len(table) and path.name not in MAY_BE_EMPTY:
        raise Damaged(f"{name} has no rows")
    values = {column: pd.to_numeric(table[column], errors="coerce") for column in numbers}
    wrong = [column for column, value in values.items() if value.isna().sum() > table[column].isna().sum()]
    wrong += [column for column in ("step", "epoch") if column in values and not np.isfinite(values[column]).all()]
    if wrong:
        raise Damaged(f"{name}: {', '.join(wrong)} should be numbers")
    return table
