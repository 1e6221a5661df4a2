"""Run a sweep, each cell in a process of its own; the same command goes on where it was stopped.

python -m unetseg.ablate experiment=skip_ablation                          the experiment's own axes
python -m unetseg.ablate model.skip=concat,add,none seed=0,1,2 jobs=2      axes of your own, two runs at once
python -m unetseg.ablate experiment=flow trainer.devices=2 trainer.strategy=ddp
"""

from __future__ import annotations

import hashlib
import json
import shlex
import sys
from pathlib import Path
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from unetseg import cells, cli, preflight
from unetseg.cells import Cell
from unetseg.options import Ablate
from unetseg.runs import RunFolder, flat, variant, write_json

OF_THE_SWEEP = ("name", "output", "jobs")
"""Options of the whole sweep, which its cells don't get."""


def ablate(jobs: list[tuple[list[str], Ablate]]) -> list[Cell]:
    """Run the cells that aren't finished; return all."""
    first = jobs[0][1]
    axes = _axes([options for _, options in jobs])
    folder = Path(first.output) / (first.name or _name(jobs, axes))
    found = []
    for overrides, options in jobs:
        name = _label(options, axes)
        own = [o for o in overrides if o.lstrip("+").partition("=")[0] not in OF_THE_SWEEP]
        found.append(Cell(name, own, options, RunFolder(folder / name), folder / "logs" / f"{name}.log"))
    for cell in found:
        cell.look()
    (folder / "logs").mkdir(parents=True, exist_ok=True)
    write_json(
        folder / "sweep.json",
        {
            "command": shlex.join(["python", *sys.orig_argv[1:]]),
            "axes": axes,
            "cells": [{"name": cell.name, "overrides": cell.overrides} for cell in found],
        },
    )
    print(f"{folder}: {len(found)} runs, {sum(cell.state == 'done' for cell in found)} of them finished before")
    _show(found, first.jobs)
    return found


def _axes(runs: list[Ablate]) -> dict[str, list[Any]]:
    """Return the options in which the runs differ, with their values in the order of the runs."""
    tables = [flat(run.model_dump(exclude={"sweep"})) for run in runs]
    values = {key: list({json.dumps(table.get(key)): table.get(key) for table in tables}.values()) for key in tables[0]}
    return {key: found for key, found in values.items() if len(found) > 1}


def _label(options: Ablate, axes: dict[str, list[Any]]) -> str:
    """Return a cell's folder name: what sets its model apart, the other axes, the seed."""
    rest = {key: value for key, value in flat(options.model_dump()).items() if key in axes and key != "seed"}
    told = ("model.skip", "model.skip_flow", "model.short_skips", "model.match_parameters")  # by variant
    words = [f"{key.rpartition('.')[2]}={value}" for key, value in rest.items() if key not in told]
    return "_".join([variant(options.model).replace(" ", "-"), *words, f"seed{options.seed}"]).replace("/", "-")


def _name(jobs: list[tuple[list[str], Ablate]], axes: dict[str, list[Any]]) -> str:
    """Return a folder name that stands for what all cells have in common: more seeds go on in the same folder."""
    overrides, options = jobs[0]
    given = cli.given(overrides)
    varied = {*axes, *options.sweep, "seed", "model.skip"}
    common = {k: v for k, v in flat(options.model_dump(exclude={"sweep", *OF_THE_SWEEP})).items() if k not in varied}
    digest = hashlib.sha256(json.dumps(common, sort_keys=True).encode()).hexdigest()[:6]
    return f"{given.get('experiment', 'ablation')}_{options.data.name}_{digest}"


def _show(found: list[Cell], jobs: int) -> None:
    """Run the cells; show one line each, live in a terminal, otherwise whenever something happens."""
    console = Console()
    if console.is_terminal:
        with Live(console=console, refresh_per_second=2) as live:
            for _ in cells.run_all(found, jobs):
                live.update(_table(found))
        return
    told: dict[str, tuple[str, int]] = {}
    for _ in cells.run_all(found, jobs):
        for cell in found:
            now = (cell.state, cell.progress()[0])
            if told.get(cell.name) != now:
                told[cell.name] = now
                print("  ".join(part for part in _line(cell) if part), flush=True)


def _line(cell: Cell) -> tuple[str, str, str, str, str]:
    """Return name, state, epochs, val IoU and time left of a cell."""
    epochs, iou = cell.progress()
    left = cell.seconds_left()
    return (
        cell.name,
        cell.state,
        f"epoch {epochs}/{cell.options.trainer.get('max_epochs')}" if cell.state == "running" else "",
        "" if iou is None else f"val IoU {iou:.4f}",
        "" if left is None else f"{int(left) // 60}:{int(left) % 60:02} left",
    )


def _table(found: list[Cell]) -> Group:
    table = Table.grid(padding=(0, 2))
    colours = {"done": "green", "running": "bold", "failed": "red", "waiting": "dim"}
    for cell in found:
        table.add_row(*_line(cell), style=colours[cell.state])
    done = sum(cell.state == "done" for cell in found)
    return Group(table, Text(f"{done} of {len(found)} runs done"))


def main() -> None:
    """Run from the command line."""
    try:
        found = cli.plan("ablate", Ablate, ablate, preflight=preflight.train)
    except KeyboardInterrupt:
        print("\nstopped; the same command goes on", file=sys.stderr)
        sys.exit(1)
    failed = [cell for cell in found or [] if cell.state != "done"]
    for cell in failed:
        print(f"\n{cell.name} failed; the end of {cell.log}:\n{cell.tail()}", file=sys.stderr)
    if failed:
        print(f"\n{len(failed)} of {len(found or [])} runs failed; the same command tries them again", file=sys.stderr)
        sys.exit(1)
    if found:
        print(f"all {len(found)} runs are done; next: python -m unetseg.report runs={found[0].run.path.parent}")


if __name__ == "__main__":
    main()
