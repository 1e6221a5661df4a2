"""Readings: one number of a finished run and its evaluation."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd

from unetseg.evaluation.shifts import STRENGTHS
from unetseg.names import EXITS, LEVELS
from unetseg.reporting.results import Run


@dataclass(frozen=True)
class Reading:
    """How a number is read from a run, and what the evaluation has to be asked for."""

    read: Callable[[Run, Path], float]
    option: str = ""
    """Of python -m unetseg.evaluate, or none."""
    mechanism: str = ""
    """One of those that its option `mechanism` takes, or none."""


def _flow(run: Run, kind: str, metric: str) -> pd.DataFrame:
    """Return a metric of gradient_flow.csv: a row for each step, a column for each block in the file's order."""
    rows = run.gradient_flow
    rows = rows[(rows.kind == kind) & (rows.metric == metric)]
    table = rows.pivot_table(index="step", columns="block", values="value", aggfunc="last")
    return table[list(dict.fromkeys(rows.block))]


def skip_exit_share(run: Run, _: Path) -> float:
    """Return the share of the first block's gradient by all exits but the bottleneck: the median over the readings."""
    shares = [_flow(run, "exit", f"share_{name}") for name in EXITS if name != "bottleneck"]
    first = sum(table.iloc[:, 0] for table in shares)
    return float(np.median(first))


def stem_gradient(run: Run, _: Path) -> float:
    """Return log10 of the rms of the first block's gradient: of the median over the readings; nan where that is 0."""
    rms = float(np.median(_flow(run, "block", "rms").iloc[:, 0]))
    return math.log10(rms) if rms > 0 else math.nan


def early_iou(run: Run, _: Path) -> float:
    """Return the validation's IoU at its first time, after a fifth of the epochs."""
    values = run.metrics[run.metrics.name == "val/iou"]
    return float(values.sort_values("step").value.iloc[0])


def lesion_loss(_: Run, evaluation: Path, level: int | None = None) -> float:
    """Return the IoU that is lost where the long skip of a level, or all of them, carries its features' mean."""
    table = pd.read_csv(evaluation / "lesion.csv", dtype={"levels": str})
    rows = table[table.cut == "mean"].set_index("levels").iou_loss
    return float(rows[str(level) if level else max(rows.index, key=len)])


def short_path_share(_: Run, evaluation: Path) -> float:
    """Return half less the mean number of residual branches on the gradient's way, as a share of all branches."""
    table = pd.read_csv(evaluation / "path_lengths.csv")
    mean = (table.residual_branches * table.share).sum() / table.share.sum()
    return float(0.5 - mean / table.residual_branches.max())


def coarse_less_fine(_: Run, evaluation: Path) -> float:
    """Return the CKA of what meets at the coarsest level less that at the finest, without what all pictures share."""
    cka = pd.read_csv(evaluation / "similarity.csv").set_index("level").cka_at_places
    return float(cka[cka.index.max()] - cka[cka.index.min()])


def deep_rank(_: Run, evaluation: Path, level: int) -> float:
    """Return the effective rank of a level's deep features as a share of the most that it could be."""
    table = pd.read_csv(evaluation / "rank.csv")
    deep = table[(table.features == "deep") & (table.level == level)].iloc[0]
    return float(deep.effective_rank / deep.at_most)


def dead_share(_: Run, evaluation: Path) -> float:
    """Return the share of dead channels among those of the deep features and of the skips at all levels."""
    table = pd.read_csv(evaluation / "rank.csv")
    return float(table.dead.sum() / table.channels.sum())


def _strongest(evaluation: Path) -> pd.DataFrame:
    """Return the rows of the shifts at their strongest."""
    table = pd.read_csv(evaluation / "shift.csv")
    return table[table.strength == STRENGTHS]


def shift_loss(_: Run, evaluation: Path) -> float:
    """Return the IoU over the set that the shifts take at their strongest: their mean."""
    return float(_strongest(evaluation).iou_loss.mean())


def shift_share(_: Run, evaluation: Path) -> float:
    """Return `shift_loss` as a share of the IoU without a shift."""
    strongest = _strongest(evaluation)
    return float((strongest.iou_loss / (strongest.iou + strongest.iou_loss)).mean())


def shifted_iou(_: Run, evaluation: Path) -> float:
    """Return the IoU over the set under the shifts at their strongest: their mean."""
    return float(_strongest(evaluation).iou.mean())


def freeu_gain(_: Run, evaluation: Path) -> float:
    """Return the IoU with both of FreeU's factors at all levels less IoU without."""
    table = pd.read_csv(evaluation / "freeu.csv", dtype={"levels": str})
    both = table[(table.b != 1) & (table.s != 1)]
    return float(both.iou_difference[both.levels.str.len().idxmax()])


def rise(_: Run, evaluation: Path) -> float:
    """Return the loss's rise along filter-normalised random directions; below 0 where it falls."""
    return float(pd.read_csv(evaluation / "sharpness.csv").rise.mean())


def alike_gradients(_: Run, evaluation: Path) -> float:
    """Return the autocorrelation of the gradient at the stem from one of 64 points between two pictures to the next."""
    table = pd.read_csv(evaluation / "shattering.csv")
    return float(table.acf[(table.depth == "stem") & (table.lag == 1)].iloc[0])


def evaluate_options(names: Iterable[str]) -> list[str]:
    """Return the options of python -m unetseg.evaluate that these readings ask for.

    Examples:
        >>> evaluate_options(["early_iou", "deep_rank_1", "coarse_less_fine", "shift_loss"])
        ['mechanism=[rank,similarity]', 'shift=true']
    """
    own = [READINGS[name] for name in names]
    mechanisms = sorted({reading.mechanism for reading in own if reading.mechanism})
    options = {reading.option for reading in own if reading.option}
    return sorted(options | ({f"mechanism=[{','.join(mechanisms)}]"} if mechanisms else set()))


BY_LEVEL = range(1, LEVELS + 1)
READINGS = {
    "skip_exit_share": Reading(skip_exit_share),
    "stem_gradient": Reading(stem_gradient),
    "early_iou": Reading(early_iou),
    "lesion_loss": Reading(lesion_loss, "lesion=true"),
    **{f"lesion_loss_{level}": Reading(partial(lesion_loss, level=level), "lesion=true") for level in BY_LEVEL},
    "short_path_share": Reading(short_path_share, "gradient=true"),
    "coarse_less_fine": Reading(coarse_less_fine, mechanism="similarity"),
    **{f"deep_rank_{level}": Reading(partial(deep_rank, level=level), mechanism="rank") for level in BY_LEVEL},
    "dead_share": Reading(dead_share, mechanism="rank"),
    **{own.__name__: Reading(own, "shift=true") for own in (shift_loss, shift_share, shifted_iou)},
    "rise": Reading(rise, mechanism="sharpness"),
    "alike_gradients": Reading(alike_gradients, mechanism="shattering"),
    "freeu_gain": Reading(freeu_gain, "freeu=[1.2,0.9]"),
}
