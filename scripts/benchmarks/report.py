"""One JSON for all measurements of a machine, and the Markdown that is drawn from it and from nothing else."""

from __future__ import annotations

import json
import os
import platform
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.comparison import Spread
from unetseg.errors import UserError
from unetseg.files import drafted, read_json
from unetseg.training.precision import best_precision

Cell = str | float | Spread
Row = Mapping[str, Cell]
"""A row of a table; its keys are the columns' titles, which name the unit."""

LEGEND = "Median over the rounds of one run, in which all alternatives take turns; in brackets the range"


@dataclass
class Result:
    """What came out of one measurement."""

    setting: str
    """What was measured on what, in a line; says whether ranges are of the middle half or of all rounds."""
    tables: Sequence[Sequence[Row]]
    rounds: dict[str, list[float]]
    """Numbers of every round, or run, from which the tables' ratios were computed; the unit is in the name."""


def listed(measured: dict[str, np.ndarray], unit: str) -> dict[str, list[float]]:
    """Return the rounds of each kind as plain numbers, the unit behind the name."""
    return {f"{kind}, {unit}": values.tolist() for kind, values in measured.items()}


def machine() -> str:
    """Return what the numbers were measured on, with the number format that is best there."""
    info = Path("/proc/cpuinfo")
    model = re.search(r"model name\s*: (.+)", info.read_text()) if info.exists() else None
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return (
        f"{model[1] if model else platform.machine()}, {cores} cores, {device}; "
        f"{best_precision('auto')}, {torch.get_num_threads()} threads, torch {torch.__version__}"
    )


def entry(result: Result, command: str) -> dict[str, Any]:
    """Return what the JSON keeps of a measurement."""
    tables = [[{name: _plain(cell) for name, cell in row.items()} for row in table] for table in result.tables]
    return {**asdict(result), "tables": tables, "command": command, "machine": machine()}


def kept(path: Path | None) -> dict[str, Any]:
    """Return the entries by the measurement's name in the JSON at `path`, if there is one."""
    if not path or not path.exists():
        return {}
    try:
        entries = read_json(path)
        markdown(entries)
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise UserError(f"{path} holds no measurements: {error}", advice="another --json FILE.json") from None
    return entries


def check_drawn(path: Path, entries: dict[str, Any]) -> None:
    """Raise a UserError where there is a file that wasn't drawn from these entries."""
    if path.exists() and path.read_bytes() != markdown(entries).encode():
        raise UserError(
            f"{path} is there, and wasn't drawn from --json's measurements: it isn't replaced",
            advice="another --output, or remove it",
        )


def write(entries: dict[str, Any], path: Path) -> None:
    """Write all entries to the JSON at `path`."""
    with drafted(path) as draft:
        draft.write_text(json.dumps(entries, indent=2) + "\n")


def markdown(entries: dict[str, Any]) -> str:
    """Return the report of all entries."""
    machines = list(dict.fromkeys(entry["machine"] for entry in entries.values()))
    parts = [f"# {' and '.join(machines)}", LEGEND + "."]
    for what, each in entries.items():
        parts += [f"## {what}", f"`{each['command']}`", each["setting"]]
        if len(machines) > 1:
            parts.append(f"measured on {each['machine']}")
        parts += [_table(rows) for rows in each["tables"]]
    return "\n\n".join(parts) + "\n"


def _plain(cell: Cell) -> str | float | dict[str, float]:
    return cell._asdict() if isinstance(cell, Spread) else cell


def _table(rows: list[dict[str, Any]]) -> str:
    lines = [rows[0].keys(), ["---"] * len(rows[0]), *([_text(cell) for cell in row.values()] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _text(cell: str | float | dict[str, float]) -> str:
    if isinstance(cell, dict):
        return f"{cell['median']:.2f} ({cell['low']:.2f} to {cell['high']:.2f})"
    if isinstance(cell, str):
        return cell
    return f"{cell:,.0f}" if abs(cell) >= 100 else f"{cell:.3g}"
