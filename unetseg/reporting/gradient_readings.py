"""What the gradient flow of the settings' runs shows."""

from __future__ import annotations

import numpy as np
import pandas as pd

from unetseg.evaluation.gradient_plots import reuse_matrix
from unetseg.names import AUXILIARY, EXITS
from unetseg.reporting.results import Run, Setting, Sweep


def gradient_rms(setting: Setting) -> pd.DataFrame:
    """Return log10 of each block's gradient rms by step, as the mean over the seeds; nan where a seed's rms is 0."""
    tables = [_readings(run, "block", "rms") for run in setting.runs]
    tables = [np.log10(table.where(table > 0)).T for table in tables if len(table)]
    if not tables:
        return pd.DataFrame()
    steps = sorted(set.intersection(*(set(table.columns) for table in tables)))
    mean: pd.DataFrame = sum(table[steps] for table in tables) / len(tables)  # type: ignore[assignment]
    return mean.loc[tables[0].index]


def levels(sweep: Sweep) -> list[str]:
    """Return the levels of long skips in the readings of the gradient flow, finest first."""
    return sorted({level for run in sweep.runs for level in _readings(run, "skip", "skip_share")})


def skip_share(setting: Setting, level: str) -> pd.DataFrame:
    """Return the skip share of a level by step, a row for each run."""
    shares = [_readings(run, "skip", "skip_share").get(level, pd.Series(dtype=float)) for run in setting.runs]
    return pd.DataFrame(shares).dropna(axis=1).astype(float)


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
    """Return the dense block with the most layers and its matrices "reuse" and "weight" by `reuse_matrix`.

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


def _readings(run: Run, kind: str, metric: str) -> pd.DataFrame:
    """Return a metric of gradient_flow.csv: a row for each step, a column for each block in the file's order.

    Of several values of a step and block the file's last is taken. `DataFrame.pivot` takes ten times as long.
    """
    rows = run.readings.get((kind, metric))
    if rows is None or not len(rows := rows[rows.value.notna()]):
        return pd.DataFrame()
    steps, row = np.unique(rows.step.to_numpy(), return_inverse=True)
    column, blocks = pd.factorize(rows.block)
    values = np.full((len(steps), len(blocks)), np.nan)
    values[row, column] = rows.value
    return pd.DataFrame(values, pd.Index(steps, name="step"), pd.Index(blocks, name="block"))
