"""Bare training steps with freed memory held, as in a training, and as glibc has it by itself, in turns.

Each turn is a fresh process: where several networks have been, free blocks lie between blocks in use, and can't go back
to Linux.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

from benchmarks import processes
from benchmarks.comparison import interleaved, spread
from benchmarks.report import Result, Row, listed

BY_ITSELF = {"GLIBC_TUNABLES": "glibc.malloc.check=0"}
"""A setting of glibc's own, of no effect but that held memory is left to glibc."""
KINDS: dict[str, dict[str, str]] = {"as glibc has it": BY_ITSELF, "held": {}}


def measure(encoder: str, size: int, batch_size: int, steps: int, rounds: int) -> Result:
    """Return the images/s of both, their ratio, and the most memory that a process has taken."""
    peaks: dict[str, int] = {}
    with tempfile.TemporaryDirectory() as name:

        def speed(kind: str) -> float:
            found = processes.limit(encoder, size, batch_size, steps, Path(name) / "limit.json", KINDS[kind])
            peaks[kind] = max(peaks.get(kind, 0), found["peak_memory"])
            return found["images_per_second"]

        speeds = interleaved({kind: lambda kind=kind: speed(kind) for kind in KINDS}, rounds, warm_up=0)
    first = next(iter(KINDS))
    rows: list[Row] = [
        {
            "freed memory": kind,
            "images/s": spread(values, whole=True),
            f"times {first}": spread(values / speeds[first], whole=True),
            "peak memory, MiB": peaks[kind] / 2**20,
        }
        for kind, values in speeds.items()
    ]
    setting = (
        f"bare steps, {encoder}, {size} px, batch {batch_size}, {steps} steps at once, {rounds} interleaved rounds, "
        "range of all rounds; the peak is that of the process, with its imports"
    )
    return Result(setting, [rows], listed(speeds, "images/s"))
