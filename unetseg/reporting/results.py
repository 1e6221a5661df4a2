"""What a folder of runs holds: the settings, their finished runs, and the cells that are not finished.

No path that a run recorded is trusted: folders may have been moved.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import yaml

from unetseg.errors import UserError
from unetseg.options.settings import axes_of, setting_name, variant
from unetseg.runs.folder import GRADIENT_FLOW_COLUMNS, METRICS_COLUMNS, RunFolder

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#7f5539", "#000000")
"""Of the settings, in this order: told apart with any colour vision (Okabe and Ito 2008, its yellow made brown)."""
STYLES = ("-", "--", ":", "-.")
"""Of their lines, one for each round through the colours."""
NO_AXES = (
    *("seed", "name", "output", "resume", "allow_changes", "sweep.", "jobs", "logger", "wandb.", "gradients."),
    *("data.workers", "trainer.log_every_n_steps", "trainer.enable_progress_bar", "trainer.default_root_dir"),
)
"""Options that change nothing of what a training computes: runs that differ in them only are of one setting."""


@dataclass(frozen=True)
class Run:
    """A finished run."""

    folder: RunFolder
    place: str
    """Where it lies below the folder of the report."""
    options: dict[str, Any]
    """Its config.yaml."""
    summary: dict[str, Any]

    @property
    def seed(self) -> int:
        """Return the seed."""
        return int(self.options["seed"])

    @cached_property
    def per_image(self) -> pd.DataFrame:
        """Return per_image.csv with the images' names as the index."""
        return pd.read_csv(self.folder.per_image, dtype={"name": str}).set_index("name").sort_index()

    @cached_property
    def metrics(self) -> pd.DataFrame:
        """Return metrics.csv; no rows where there is none."""
        return _table(self.folder.metrics, METRICS_COLUMNS)

    @cached_property
    def gradient_flow(self) -> pd.DataFrame:
        """Return gradient_flow.csv; no rows where there is none."""
        return _table(self.folder.gradient_flow, GRADIENT_FLOW_COLUMNS)


@dataclass(frozen=True, eq=False)
class Setting:
    """Finished runs that differ only in their seed."""

    name: str
    colour: str
    style: str
    runs: list[Run]
    """By seed, no seed twice."""

    @property
    def seeds(self) -> list[int]:
        """Return the seeds."""
        return [run.seed for run in self.runs]

    @cached_property
    def images(self) -> tuple[str, ...] | None:
        """Return the names of the test images, None where the runs have different ones or a name stands twice."""
        names, *others = {tuple(run.per_image.index) for run in self.runs}
        return None if others or len(set(names)) < len(names) else names

    def scores(self, metric: str, seeds: list[int] | None = None) -> np.ndarray:
        """Return a column of per_image.csv, SxN: a row for each seed, the images in the order of `images`."""
        runs = [run for run in self.runs if seeds is None or run.seed in seeds]
        return np.stack([run.per_image[metric].to_numpy(float) for run in runs])

    def mean(self, name: str) -> float:
        """Return the mean over the seeds of an entry of the summaries, nan where one of them lacks it."""
        return float(np.mean([run.summary.get(name, np.nan) for run in self.runs]))


@dataclass(frozen=True)
class Sweep:
    """What a report is about."""

    settings: list[Setting]
    absent: list[tuple[str, str]]
    """Cells that are not finished, and whether they are missing or unfinished."""
    repeated: list[str]
    """Places of runs left out, because a later one has the same options and seed."""
    record: dict[str, Any]
    """sweep.json, or nothing."""

    @property
    def runs(self) -> list[Run]:
        """Return the runs, setting by setting."""
        return [run for setting in self.settings for run in setting.runs]


def read(root: Path) -> Sweep:
    """Read the runs below a folder; raise a UserError where none is finished."""
    record = _json(root / "sweep.json") or {}
    found = list(_run_folders(root))
    runs = [run for run in found if isinstance(run, Run)]
    unfinished = [run for run in found if isinstance(run, str)]
    if not runs:
        count = f"{len(unfinished)} run folders, none of them finished" if unfinished else "no run folder"
        raise UserError(
            f"runs={root} holds {count}",
            accepted="a folder with runs below it that have a summary.json",
            advice="the `output` of python -m unetseg.train or unetseg.ablate",
        )
    cells = [cell["name"] for cell in record.get("cells", [])]
    known = {place.rpartition("/")[2] for place in (*unfinished, *(run.place for run in runs))}
    absent = [(name, "missing") for name in cells if name not in known]
    absent += [(place, "unfinished") for place in unfinished]
    by_name: dict[str, dict[int, Run]] = {}
    repeated = []
    for run, name in zip(runs, setting_names([run.options for run in runs]), strict=True):
        seeds = by_name.setdefault(name, {})
        if run.seed in seeds:
            repeated.append(seeds[run.seed].place)  # names end with the time: the last one counts
        seeds[run.seed] = run

    def order(name: str) -> tuple[int, bool, str]:
        folders = {run.folder.path.name for run in by_name[name].values()}
        position = next((place for place, cell in enumerate(cells) if cell in folders), len(cells))
        return position, name.split()[0] != "concat", name

    settings = [
        Setting(name, COLOURS[number % 8], STYLES[number // 8 % 4], [run for _, run in sorted(by_name[name].items())])
        for number, name in enumerate(sorted(by_name, key=order))
    ]
    return Sweep(settings, absent, repeated, record)


def setting_names(options: list[dict[str, Any]]) -> list[str]:
    """Return what sets each run apart: the variant of its model, and key=value for what else differs among the runs."""
    axes = axes_of(options, NO_AXES)
    return [" ".join(setting_name(run, axes)) for run in options]


def _run_folders(root: Path) -> Iterator[Run | str]:
    """Yield the finished runs at or below `root`, and the places of others; nothing that lies inside a run."""
    for folder, folders, files in os.walk(root):
        folders.sort()
        if "config.yaml" not in files:
            continue
        run = RunFolder(folder)
        try:
            options = yaml.safe_load(run.config.read_text())
            variant(options["model"]), int(options["seed"]), options["data"]["name"]
        except (ValueError, TypeError, LookupError, AttributeError, yaml.YAMLError):
            continue  # another program's config.yaml
        folders.clear()
        place = os.path.relpath(folder, root).replace(os.sep, "/")
        place = Path(folder).resolve().name if place == "." else place
        summary = _json(run.summary) if run.per_image.exists() else None
        yield place if summary is None else Run(run, place, options, summary)


def _json(path: Path) -> dict[str, Any] | None:
    """Return what a file holds, None where there is none."""
    try:
        return json.loads(path.read_text()) if path.exists() else None
    except ValueError:
        raise UserError(f"{path} can't be read", accepted="the file as it was written by this software") from None


def _table(path: Path, columns: Sequence[str]) -> pd.DataFrame:
    return pd.read_csv(path) if path.exists() else pd.DataFrame(columns=columns)
