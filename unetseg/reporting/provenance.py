"""The provenance of a report: commands, versions, commits, machines, data, and every run."""

from __future__ import annotations

import json
from typing import Any

from unetseg.names import minutes
from unetseg.options.messages import format_value
from unetseg.options.settings import flat
from unetseg.reporting.document import Code, Section, Table
from unetseg.reporting.results import Sweep
from unetseg.reporting.sentences import join_words, number


def common(sweep: Sweep, key: str) -> str:
    """Return the distinct values of an option over all runs, as text."""
    return _distinct([flat(run.options).get(key) for run in sweep.runs])


def provenance(sweep: Sweep) -> Section:
    """Return the section with everything that is needed to repeat the runs."""
    runs = sweep.runs
    commands = dict.fromkeys(run.summary.get("command", "") for run in runs)
    own = [sweep.record["command"]] if sweep.record.get("command") else []
    blocks: list[str | Table | Code] = [Code([command for command in [*own, *commands] if command])]
    packages = dict.fromkeys(name for run in runs for name in run.summary.get("versions", {}))
    data = dict.fromkeys(key for run in runs for key in flat(run.options) if key.startswith("data."))
    facts = [
        ("git commit", _distinct([run.summary.get("git_commit") for run in runs])),
        ("machine", _distinct([run.summary.get("machine") for run in runs])),
        ("precision", _distinct([run.summary.get("precision") for run in runs])),
        ("test images", _distinct([len(run.per_image) for run in runs])),
        *((key, common(sweep, key)) for key in data),
        *((name, _distinct([run.summary.get("versions", {}).get(name) for run in runs])) for name in packages),
    ]
    folds = any(run.folds for run in runs)
    tested = "search" not in sweep.record  # a search's trials are not to be chosen by their test scores
    rows = [
        [
            setting.name,
            run.place,
            str(run.seed),
            *([str(run.fold)] if folds else []),
            *([number(run.summary["test/iou"])] if tested else []),
            str(run.summary.get("epochs", "–")),
            _time(run.summary.get("seconds")),
        ]
        for setting in sweep.settings
        for run in setting.runs
    ]
    commits = {run.summary.get("git_commit") for run in runs}
    lead = f"{len(runs)} runs, from {len(commits)} git {'commits' if len(commits) > 1 else 'commit'}"
    if any(str(commit).endswith("-dirty") for commit in commits):
        lead += ", some with uncommitted changes"
    blocks += [
        Table(["what", "value"], facts, words=2),
        Table(
            [
                *("setting", "folder", "seed"),
                *(["fold"] if folds else []),
                *(["IoU over the set"] if tested else []),
                *("epochs", "time"),
            ],
            rows,
            words=2,
        ),
    ]
    if sweep.repeated:
        places = ", ".join(sweep.repeated)
        blocks.append(f"Left out, because another run has the same options and seed: {places}.")
    if sweep.absent:
        blocks.append(Table(["cell", "state"], sweep.absent, words=2, caption="Cells that are not in this report."))
    if sweep.damaged:
        blocks.append(Table(["cell", "why"], sweep.damaged, words=2, caption="Files that can't be used."))
    return Section("Behind the numbers", f"{lead}; everything that is needed to repeat them.", blocks)


def _distinct(values: list[Any]) -> str:
    """Return the distinct values as text."""
    distinct = {json.dumps(value): value for value in values}
    return join_words([format_value(value) for value in distinct.values()])


def _time(seconds: float | None) -> str:
    return "–" if seconds is None else minutes(seconds)
