"""The section on shifted pictures: what each setting loses as pictures get worse, and how their differences change."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import pandas as pd

from unetseg.evaluation.shifts import SHIFTS, STRENGTHS
from unetseg.reporting import charts, comparisons, sentences
from unetseg.reporting.comparisons import METRICS, Pair
from unetseg.reporting.document import Block, Figure, Section, Table
from unetseg.reporting.results import Run, Setting, Sweep
from unetseg.reporting.sentences import change, interval, number
from unetseg.runs.folder import RunFolder
from unetseg.runs.tables import read_csv

TABLE = "shift_per_image.csv"


@dataclass(frozen=True)
class ShiftedRun(Run):
    """A run with one of its evaluations under shift, whose folder is that of the evaluation."""

    @cached_property
    def per_image(self) -> pd.DataFrame:
        """Return the scores of each image by its name: its group, "iou noise 3", ..., and "iou_lost noise 3", ..."""
        table = read_csv(self.folder.path / TABLE)
        groups = table.groupby("name").group.first() if "group" in table else None
        table["condition"] = table["shift"] + " " + table.strength.astype(int).astype(str)
        columns = {} if groups is None else {"group": groups}
        for metric in METRICS:
            wide = table.pivot(index="name", columns="condition", values=metric)
            columns[metric] = wide["none 0"]
            columns |= {f"{metric} {name}": wide[name] for name in wide}
            columns |= {f"{metric}_lost {name}": wide["none 0"] - wide[name] for name in wide}
        return pd.DataFrame(columns).sort_index()


def evaluations(sweep: Sweep) -> dict[str, list[Setting]]:
    """Return the settings with their runs under shift, by the name of the evaluation."""
    found: dict[str, list[Setting]] = {}
    for setting in sweep.settings:
        paths = [(run, path.parent) for run in setting.runs for path in run.evaluations(TABLE)]
        for name in sorted({path.name for _, path in paths}):
            runs = [
                ShiftedRun(RunFolder(path), run.place, run.options, run.summary)
                for run, path in paths
                if path.name == name
            ]
            found.setdefault(name, []).append(replace(setting, runs=[*runs]))
    return found


def shifts(sweep: Sweep, *, pooled: bool = False) -> Section | None:
    """Return how far scores fall under each shift, and how the differences between settings change."""
    leads, blocks = [], list[Block]()
    for name, settings in evaluations(sweep).items():
        lead, own = _of_evaluation(name, replace(sweep, settings=settings), pooled)
        leads.append(lead)
        blocks += own
    return Section("Under shift", " ".join(leads), blocks) if leads else None


def _of_evaluation(name: str, sweep: Sweep, pooled: bool) -> tuple[str, list[Block]]:
    """Return what is to be said first of one evaluation, and its figure, tables and notes."""
    settings, unit = sweep.settings, comparisons.unit(sweep)
    means = {setting: _means(setting) for setting in settings}
    figure = Figure(
        [
            charts.lines(
                f"shift_{name}_{shift}", f"IoU per {unit}", "strength", _by_strength(means, shift), title=shift
            )
            for shift in SHIFTS
        ],
        f"{name}: the mean over the images, and over the seeds (their range). Strength 0: the pictures as they are.",
        legend=charts.legend(settings),
    )
    lost = {
        setting: max((table[f"iou_lost {s} {STRENGTHS}"].mean(), s) for s in SHIFTS) for setting, table in means.items()
    }
    worst = sentences.join_words([f"{number(value)} ({shift}) with {s.name}" for s, (value, shift) in lost.items()])
    lead = f"In {name} the most of IoU that the strongest shifts take is {worst}."
    of_losses = [f"{metric}_lost {shift} {STRENGTHS}" for metric in METRICS for shift in SHIFTS]
    changes, left_out = comparisons.pairs(settings, unit, pooled=pooled, metrics=of_losses)
    if not any(changes.values()):
        return lead, [figure, *left_out]
    strengths = [("none", 0, "as they are"), *(("", strength, str(strength)) for strength in range(1, STRENGTHS + 1))]
    conditions = [f"{metric} {s or shift} {n}" for metric in METRICS for shift in SHIFTS for s, n, _ in strengths]
    gaps, _ = comparisons.pairs(settings, unit, pooled=pooled, metrics=dict.fromkeys(conditions))
    tables: list[Block] = []
    for metric, title in METRICS.items():
        rows = []
        for shift in SHIFTS:
            for position, pair in enumerate(changes[f"{metric}_lost {shift} {STRENGTHS}"]):
                each = [gaps[f"{metric} {s or shift} {n}"][position] for s, n, _ in strengths]
                tested = "–" if pair.one_seed else sentences.p_value(pair.p)
                rows.append([shift, pair.name, *map(_difference, each), _difference(pair, -1), tested])
        columns = ["shift", "difference", *(title for *_, title in strengths), f"change to {STRENGTHS}", "p (Holm)"]
        caption = (
            f"{name}: differences in {title} per {unit} [95 % interval], on the same {unit}s and seeds, at each "
            "strength; how far they have changed at the strongest one, with its p corrected over both tables."
        )
        tables.append(Table(columns, rows, words=2, caption=caption))
    shown = [(key, pair) for key, pairs in changes.items() if key.startswith("iou_") for pair in pairs if pair.shown]
    told = [f"{pair.name} by {_difference(pair, -1)} under {key.split()[1]}" for key, pair in shown]
    lead += (
        f" A difference in IoU changes: {sentences.join_words(told)}."
        if told
        else (" That a shift changes a difference between settings in IoU was not shown.")
    )
    reversed_ = _reversed(gaps)
    lead += f" The order is reversed: {sentences.join_words(reversed_)}." if reversed_ else ""
    return lead, [figure, *tables, sentences.seeds(sweep, next(iter(changes.values())), unit), *left_out]


def _means(setting: Setting) -> pd.DataFrame:
    """Return the means over the images, a row for each seed."""
    rows = {run.seed: run.per_image.drop(columns="group", errors="ignore").mean() for run in setting.runs}
    return pd.DataFrame(rows).T


def _by_strength(means: dict[Setting, pd.DataFrame], shift: str) -> dict[Setting, pd.DataFrame]:
    names = {0: "iou none 0", **{strength: f"iou {shift} {strength}" for strength in range(1, STRENGTHS + 1)}}
    return {s: pd.DataFrame({n: table[name] for n, name in names.items()}) for s, table in means.items()}


def _difference(pair: Pair, sign: int = 1) -> str:
    """Return a difference with its interval, or its negative: what is lost more is a difference that falls."""
    result = pair.result
    value, one, two = (sign * number + 0.0 for number in (result.difference, result.low, result.high))  # no -0.0
    return f"{change(value)} {interval(min(one, two), max(one, two), signed=True)}"


def _reversed(gaps: dict[str, list[Pair]]) -> list[str]:
    """Return where a difference of the pictures as they are and one at the strongest shift exclude 0 on two sides."""
    told = []
    for shift in SHIFTS:
        for clean, strong in zip(gaps["iou none 0"], gaps[f"iou {shift} {STRENGTHS}"], strict=True):
            opposite = np.sign(clean.result.difference) != np.sign(strong.result.difference)
            if opposite and clean.excludes_zero and strong.excludes_zero and not clean.one_seed:
                told.append(f"{strong.name} is {_difference(strong)} under {shift}, {_difference(clean)} without")
    return told
