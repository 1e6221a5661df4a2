"""Run a sweep, each run in a process of its own; the same command continues a sweep that was stopped.

python -m unetseg.ablate experiment=skip_ablation                        the experiment's own axes
python -m unetseg.ablate model.skip=concat,add,none seed=0,1,2 jobs=2    your own, two runs at once
python -m unetseg.ablate experiment=flow trainer.devices=2 trainer.strategy=ddp

In Python: sweep = unetseg.ablate("model.skip=concat,none", "seed=0,1", data="synthetic")
"""

from __future__ import annotations

import hashlib
import json
import shlex
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from unetseg import launch
from unetseg.errors import Halt, UserError
from unetseg.files import write_json
from unetseg.names import counted, minutes
from unetseg.options import command
from unetseg.options.call import CallableModule, Option, interruptible, overrides_of
from unetseg.options.compose import values_of
from unetseg.options.schema import Ablate
from unetseg.options.settings import axes_of, flat, run_name
from unetseg.runs.folder import RunFolder
from unetseg.runs.sweep import SweepRun, run_all
from unetseg.training import preflight

if TYPE_CHECKING:
    from unetseg.runs.run import Sweep

SWEEP_OPTIONS = ("name", "output", "jobs", "dry_run", "find_lr")
"""Options of the whole sweep, which its runs don't get."""


def call(*overrides: str, **options: Option) -> Sweep:
    """Run a sweep, each run in a process of its own, and return it: what `unetseg.ablate(...)` does.

    The same call goes on with a sweep that was stopped.

    Args:
        overrides: options as on the command line, such as "model.skip=concat,none" or "seed=0,1,2".
        options: those without a dot: experiment, data, jobs (runs at once), name, output, ...

    Raises:
        UserError: an option is wrong; the text says what is accepted and what to try.
        Halt: runs failed; the text has the end of each one's log.

    Examples:
        sweep = unetseg.ablate("model.skip=concat,none", "seed=0,1", data="synthetic")
        sweep.table.groupby("setting").IoU.mean()
    """
    from unetseg.runs.run import Sweep

    given = overrides_of(overrides, options, "experiment=skip_ablation")
    with interruptible("ablate", given):
        runs = ablate(command.sweep_of("ablate", Ablate, given, preflight=preflight.train))
        if failed := failures(runs):
            raise Halt(failed)
        return Sweep(runs[0].folder.path.parent)


def failures(runs: list[SweepRun]) -> str:
    """Return the ends of the logs of the runs that failed; an empty text where none did."""
    failed = [run for run in runs if run.state != "done"]
    if not failed:
        return ""
    logs = [f"\n{run.name} failed; the end of {run.log}:\n{run.tail()}" for run in failed]
    return "\n".join([*logs, f"\n{len(failed)} of {len(runs)} runs failed; the same command tries them again"])


def ablate(jobs: list[tuple[list[str], Ablate]]) -> list[SweepRun]:
    """Run the runs of a sweep that aren't finished; return all of them.

    Args:
        jobs: overrides and options of each run.
    """
    first = jobs[0][1]
    axes = axes_of([options.model_dump() for _, options in jobs], ignored=("sweep.",))
    folder = Path(first.output) / (first.name or sweep_name(jobs, axes))
    runs: dict[str, SweepRun] = {}
    for overrides, options in jobs:
        name = run_name(options.model_dump(), axes)
        own = [o for o in overrides if o.lstrip("+").partition("=")[0] not in SWEEP_OPTIONS]
        run = SweepRun(name, own, options, RunFolder(folder / name), folder / "logs" / f"{name}.log")
        if name in runs:
            both = f"{' '.join(runs[name].overrides)} and {' '.join(own)}"
            raise UserError(
                f"two runs of the sweep would have one folder, {name}: {both}",
                accepted="values that differ in a name, within twelve digits",
                advice="two sweeps",
            )
        run.check_folder()
        runs[name] = run
    logs = folder / "logs"
    if logs.is_symlink():
        raise UserError(f"{logs} is a link", accepted="a folder of its own", advice="another name=... or output=...")
    logs.mkdir(parents=True, exist_ok=True)
    record = {
        "command": launch.command_line(),
        "axes": axes,
        "cells": [{"name": run.name, "overrides": run.overrides} for run in runs.values()],
    }
    write_json(folder / "sweep.json", record)
    all_runs = [*runs.values()]
    finished = sum(run.state == "done" for run in all_runs)
    print(f"{folder}: {counted(len(runs), 'run')}, {finished} of them finished before")
    show(all_runs, first.jobs)
    return all_runs


def sweep_name(jobs: list[tuple[list[str], Ablate]], axes: Iterable[str]) -> str:
    """Return a folder name made of what all runs have in common, so that more seeds go into the same folder."""
    overrides, options = jobs[0]
    varied = {*axes, *options.sweep, "seed", "model.skip"}
    values = flat(options.model_dump(exclude={"sweep", *SWEEP_OPTIONS}))
    common = {key: value for key, value in values.items() if key not in varied}
    digest = hashlib.sha256(json.dumps(common, sort_keys=True).encode()).hexdigest()[:6]
    return f"{values_of(overrides).get('experiment', 'ablation')}_{options.data.name}_{digest}"


def show(runs: list[SweepRun], jobs: int) -> None:
    """Run them; show one line a run, live in a terminal, otherwise whenever it changes."""
    console = Console()
    if console.is_terminal:
        with Live(console=console, refresh_per_second=2) as live:
            for _ in run_all(runs, jobs):
                live.update(_table(runs))
        return
    printed: dict[str, tuple[str, int]] = {}
    for _ in run_all(runs, jobs):
        for run in runs:
            status = (run.state, run.progress()[0])
            if printed.get(run.name) != status:
                printed[run.name] = status
                print("  ".join(column for column in _columns(run) if column), flush=True)


def _columns(run: SweepRun) -> tuple[str, str, str, str, str]:
    """Return name, state, epochs, val IoU and time left of a run."""
    epochs, iou = run.progress()
    left = run.seconds_left()
    return (
        run.name,
        run.state,
        f"epoch {epochs}/{run.options.trainer.get('max_epochs')}" if run.state == "running" else "",
        "" if iou is None else f"val IoU {iou:.4f}",
        "" if left is None else f"{minutes(left)} left",
    )


def _table(runs: list[SweepRun]) -> Group:
    table = Table.grid(padding=(0, 2))
    colours = {"done": "green", "running": "bold", "failed": "red", "waiting": "dim"}
    for run in runs:
        table.add_row(*_columns(run), style=colours[run.state])
    done = sum(run.state == "done" for run in runs)
    return Group(table, Text(f"{done} of {len(runs)} runs done"))


def main() -> None:
    for runs in command.run("ablate", Ablate, ablate, together=True, preflight=preflight.train, about=__doc__):
        if failed := failures(runs):
            print(failed, file=sys.stderr)
            sys.exit(1)
        folder = shlex.quote(str(runs[0].folder.path.parent))
        print(f"all {len(runs)} runs are done; next: python -m unetseg.report runs={folder}")


sys.modules[__name__].__class__ = CallableModule

if __name__ == "__main__":
    main()
