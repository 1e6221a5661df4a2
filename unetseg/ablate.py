"""Run a sweep or a search, a process for each run; the same command continues what was stopped.

python -m unetseg.ablate experiment=skip_ablation                        the experiment's own axes
python -m unetseg.ablate model.skip=concat,add,none seed=0,1,2 jobs=2    your own, two runs at once
python -m unetseg.ablate experiment=flow trainer.devices=2 trainer.strategy=ddp
python -m unetseg.ablate search=optuna trials=50 'optimizer.lr=tag(log,interval(1e-5,1e-2))'

In Python: sweep = unetseg.ablate("model.skip=concat,none", "seed=0,1", data="synthetic")
"""

from __future__ import annotations

import hashlib
import json
import shlex
import sys
from collections import Counter
from collections.abc import Generator, Iterable, Sequence
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

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
from unetseg.options.compose import compose_cell, values_of
from unetseg.options.messages import format_value
from unetseg.options.recorded import EARLIER
from unetseg.options.schema import Ablate
from unetseg.options.settings import axes_of, differences, flat, run_name, trust_of
from unetseg.options.space import assignments, combinations, space_of
from unetseg.runs.folder import RunFolder
from unetseg.runs.sweep import SweepRun, run_all
from unetseg.training import preflight

if TYPE_CHECKING:
    from unetseg.runs.run import Sweep

SWEEP_OPTIONS = ("name", "output", "jobs", "search", "trials", "dry_run", "find_lr")
"""Options of the whole sweep, which its runs don't get."""
RECORD = "sweep.json"
BEST = 5
"""The most trials that are listed at the end of a search."""


def call(*overrides: str, **options: Option) -> Sweep:
    """Run a sweep or a search, each run in a process of its own, and return it: what `unetseg.ablate(...)` does.

    The same call goes on with one that was stopped.

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
        runs = ablate(command.sweep_of("ablate", Ablate, given, preflight=preflight.surroundings), given)
        if failed := failures(runs):
            raise Halt(failed)
        return Sweep(runs[0].folder.path.parent)


def failures(runs: list[SweepRun]) -> str:
    """Return the ends of the logs of the runs that failed; an empty text where none did."""
    failed = [run for run in runs if run.state not in ("done", "pruned")]
    if not failed:
        return ""
    logs = [f"\n{run.name} failed; the end of {run.log}:\n{run.tail()}" for run in failed]
    return "\n".join([*logs, f"\n{len(failed)} of {len(runs)} runs failed; the same command tries again"])


def ablate(jobs: list[tuple[list[str], Ablate]], given: Sequence[str] = ()) -> list[SweepRun]:
    """Run the runs of a sweep that aren't finished, or a search; return all of them.

    Args:
        jobs: overrides and options of each run; of a search those at the edges of its space.
        given: all overrides, as they were given; of a search, with its space.
    """
    first = jobs[0][1]
    if first.search:
        for _, options in jobs:
            preflight.start(options)
        return search(first, given)
    axes = axes_of([options.model_dump() for _, options in jobs], ignored=("sweep.",))
    folder = Path(first.output) / (first.name or sweep_name(jobs, axes))
    runs: dict[str, SweepRun] = {}
    for overrides, options in jobs:
        name = run_name(options.model_dump(), axes)
        own = of_runs(overrides)
        run = SweepRun(name, own, options, RunFolder(folder / name), folder / "logs" / f"{name}.log")
        if name in runs:
            both = f"{' '.join(runs[name].overrides)} and {' '.join(own)}"
            raise UserError(
                f"two runs of the sweep would have one folder, {name}: {both}",
                accepted="values that differ in a name, within twelve digits",
                advice="two sweeps",
            )
        run.check_folder()
        if run.state != "done" and not run.folder.last.exists():  # else it has weights of its own
            preflight.start(options)
        runs[name] = run
    if "search" in prepare(folder):
        raise UserError(f"{folder} holds a search", accepted="a folder of its own", advice="another name=...")
    record = {
        "command": launch.command_line(),
        "axes": axes,
        "cells": [{"name": run.name, "overrides": run.overrides} for run in runs.values()],
    }
    write_json(folder / RECORD, record)
    all_runs = [*runs.values()]
    finished = sum(run.state == "done" for run in all_runs)
    print(f"{folder}: {counted(len(runs), 'run')}, {finished} of them finished before")
    show(all_runs, run_all(all_runs, first.jobs), len(all_runs))
    return all_runs


def search(first: Ablate, given: Sequence[str]) -> list[SweepRun]:
    """Go on with a search until it has its trials; return the runs of all that didn't fail before.

    Args:
        first: the options of a run at an edge of the space.
        given: all overrides, with the space.
    """
    fixed, space, texts = space_of(given)
    own = of_runs(fixed)
    trials = first.trials or 1
    if trials > combinations(space):
        raise UserError(
            f"trials={trials} of {combinations(space):.0f} combinations",
            accepted="a search that can't try all of them",
            advice="the same without search and trials, which runs each of them",
        )
    common = {key: value for key, value in flat(first.model_dump(exclude={*SWEEP_OPTIONS})).items() if key not in space}
    digest = hashlib.sha256(json.dumps([common, texts], sort_keys=True).encode()).hexdigest()[:6]
    folder = Path(first.output) / (first.name or f"search_{first.data.name}_{digest}")
    earlier = prepare(folder)
    of_before = {key: value for key, value in flat(EARLIER).items() if key in common}
    changed = differences(of_before | earlier.get("search", {}).get("options", common), common)
    if earlier and (changed or earlier.get("search", {}).get("space") != texts):
        raise UserError(
            f"{folder} holds something else: {'; '.join(changed) or 'a sweep, or a search of another space'}",
            accepted="a search of the same options and the same space, which goes on",
            advice="another name=... or output=...",
        )
    from unetseg.runs import search as studies  # imports Optuna

    def make(number: int, values: dict[str, Any]) -> SweepRun:
        name = studies.trial_name(number)
        overrides = [*own, *assignments(values)]
        log, state, options = folder / "logs" / f"{name}.log", "waiting", first
        try:
            options = compose_cell("ablate", Ablate, overrides)
        except UserError as error:
            state = "failed"
            log.write_text(f"its options don't go together: {error}\n", encoding="utf-8")
        return SweepRun(name, overrides, options, RunFolder(folder / name), log, state, values_text(values))

    study = studies.Search(folder, space, trials, first.seed, make)
    record = {"command": launch.command_line(), "cells": []}
    about = {"trials": trials, "space": texts, "options": common}
    write_json(folder / RECORD, {**record, "search": about})
    print(f"{folder}: {counted(trials, 'trial')}, {study.finished} of them finished before")
    show(study.runs, study.run(first.jobs), trials)
    if ranked := study.ranked():
        further = test_command([*own, *assignments(ranked[0][2])], first.seed)
        about |= {"importance": study.importance(), "next": further}
        write_json(folder / RECORD, {**record, "search": about})
        print(f"the best of {counted(study.finished, 'trial')} by validation IoU, which is an optimistic estimate:")
        for run, iou, _ in ranked[:BEST]:
            print(f"{run.name}  val IoU {iou:.4f}  {run.text}")
        print(f"on the test split, with seeds that the search did not use: {further}")
    return study.runs


def test_command(overrides: Iterable[str], seed: int) -> str:
    """Return the command that trains with these options and three seeds after `seed`, and tests."""
    options = [option.removeprefix("++") for option in overrides if not option.startswith("seed=")]
    seeds = ",".join(str(seed + number) for number in (1, 2, 3))
    return shlex.join(["python", "-m", "unetseg.ablate", *options, f"seed={seeds}"])


def of_runs(overrides: Iterable[str]) -> list[str]:
    """Return the overrides that the runs get, too."""
    return [o for o in overrides if o.lstrip("+").partition("=")[0] not in SWEEP_OPTIONS]


def values_text(values: dict[str, Any]) -> str:
    """Return a trial's options in short: lr=0.00123 skip=add."""
    texts = {key: f"{value:.3g}" if isinstance(value, float) else format_value(value) for key, value in values.items()}
    return " ".join(f"{key.rpartition('.')[2]}={text}" for key, text in texts.items())


def prepare(folder: Path) -> dict[str, Any]:
    """Make the folder of a sweep; return the record of an earlier one there, empty where there is none.

    Raises:
        UserError: something in it leads elsewhere, or the record is damaged.
    """
    for path in (folder / "logs", folder / RECORD, folder / "study.db"):
        if path.is_symlink():
            raise UserError(
                f"{path} is a link", accepted="a folder of its own", advice="another name=... or output=..."
            )
    (folder / "logs").mkdir(parents=True, exist_ok=True)
    if not (folder / RECORD).exists():
        return {}
    try:
        record = json.loads((folder / RECORD).read_text(encoding="utf-8"))
        return {**record, **({"search": {**record["search"]}} if "search" in record else {})}
    except (ValueError, TypeError) as error:
        raise UserError(f"{folder / RECORD} can't be read: {error}", advice="another name=... or output=...") from None


def sweep_name(jobs: list[tuple[list[str], Ablate]], axes: Iterable[str]) -> str:
    """Return a folder name made of what all runs have in common, so that more seeds go into the same folder."""
    overrides, options = jobs[0]
    varied = {*axes, *options.sweep, "seed", "model.skip"}
    values = flat(options.model_dump(exclude={"sweep", *SWEEP_OPTIONS}))
    common = {key: value for key, value in values.items() if key not in varied}
    digest = hashlib.sha256(json.dumps(common, sort_keys=True).encode()).hexdigest()[:6]
    return f"{values_of(overrides).get('experiment', 'ablation')}_{options.data.name}_{digest}"


def show(runs: Sequence[SweepRun], ticks: Generator[None], total: int) -> None:
    """Run them; show one line a run, live in a terminal, otherwise whenever it changes.

    Args:
        runs: further ones may follow while they run.
        ticks: runs them while it is iterated over.
        total: the number of runs in the end.
    """
    console = Console()
    if console.is_terminal:
        with closing(ticks), Live(console=console, refresh_per_second=2) as live:
            for _ in ticks:
                live.update(_table(runs, total, console.height - 1))
        return
    printed: dict[str, tuple[str, int]] = {}
    with closing(ticks):
        for _ in ticks:
            for run in runs:
                before = printed.get(run.name)
                if before is not None and before[0] == run.state != "running":
                    continue  # its metrics need not be read again
                status = (run.state, run.progress()[0])
                if before != status:
                    printed[run.name] = status
                    print("  ".join(column for column in _columns(run) if column), flush=True)


def _columns(run: SweepRun) -> tuple[str, str, str, str, str, str]:
    """Return name, options, state, epochs, val IoU and time left of a run."""
    epochs, iou = run.progress()
    left = run.seconds_left()
    return (
        run.name,
        run.text,
        run.state,
        f"epoch {epochs}/{run.options.trainer.get('max_epochs')}" if run.state == "running" else "",
        "" if iou is None else f"val IoU {iou:.4f}",
        "" if left is None else f"{minutes(left)} left",
    )


def _table(runs: Sequence[SweepRun], total: int, lines: int) -> Group:
    """Return a line for each run and one of their number; of more runs than there are lines, those that matter now."""
    order = ("running", "failed", "done", "pruned", "waiting")
    latest = sorted(
        range(len(runs)), key=lambda i: (order.index(runs[i].state), i if runs[i].state == "waiting" else -i)
    )
    table = Table.grid(padding=(0, 2))
    colours = {"done": "green", "running": "bold", "failed": "red", "pruned": "dim", "waiting": "dim"}
    for number in sorted(latest[: max(1, lines - 1)]):
        table.add_row(*_columns(runs[number]), style=colours[runs[number].state])
    states = Counter(run.state for run in runs)
    counts = [f"{states['done'] + states['pruned']} of {total} runs done"]
    if len(runs) >= lines:
        counts += [f"{states[state]} {state}" for state in ("running", "failed", "waiting") if states[state]]
    return Group(table, Text(", ".join(counts)))


def main() -> None:
    for runs in command.run("ablate", Ablate, ablate, together=True, preflight=preflight.surroundings, about=__doc__):
        if failed := failures(runs):
            print(failed, file=sys.stderr)
            sys.exit(1)
        folder = shlex.quote(str(runs[0].folder.path.parent))
        trust = max(trust_of(run.options.model_dump()) for run in runs)
        print(f"all {len(runs)} runs are done; next: python -m unetseg.report runs={folder}{trust}")


sys.modules[__name__].__class__ = CallableModule

if __name__ == "__main__":
    main()
