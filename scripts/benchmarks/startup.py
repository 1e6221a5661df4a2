"""Seconds until something happens: the first training step, the help text, the message about a wrong option.

All in fresh processes, in turns; held against a process that imports torch, lightning and smp, and nothing else.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from itertools import count
from pathlib import Path

import numpy as np

from benchmarks.comparison import interleaved, spread
from benchmarks.pictures import link_pets
from benchmarks.processes import python, training
from benchmarks.report import Result, Row, listed

IMPORTS = "imports of torch, lightning and smp"
FIRST_STEP = "train, to its first step"
PROMISED = {FIRST_STEP: "1.3 times the imports", "--help": "1.5 s", "a wrong option": "1.5 s"}
"""What we promise, as upper limits."""


def measure(pets: Path, encoder: str, size: int, batch_size: int, rounds: int) -> Result:
    """Return the seconds of each start and their ratios to the bare imports."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        root = link_pets(pets, folder / "pets", train_images=2 * batch_size)
        overrides = training(root, encoder, size, batch_size, 1, 2)
        mark, runs = folder / "mark", count()
        write = f"import time, pathlib; pathlib.Path({str(mark)!r}).write_text(str(time.time()))"
        bare = ("-c", f"import torch, lightning, segmentation_models_pytorch; {write}")
        kinds: dict[str, Callable[[], float]] = {
            IMPORTS: lambda: until(mark, *bare),
            FIRST_STEP: lambda: until(
                mark, "-m", "benchmarks.first_step", mark, *overrides, f"output={folder}", f"name=run{next(runs)}"
            ),
            "--help": lambda: whole("-m", "unetseg.train", "--help"),
            "a wrong option": lambda: whole("-m", "unetseg.train", "model.skip=concta", status=2),
        }
        seconds = interleaved(kinds, rounds)
    setting = f"{encoder}, {size} px, batch {batch_size}, 2 workers, {rounds} interleaved rounds, range of all rounds"
    return Result(setting, [table(seconds)], listed(seconds, "s"))


def table(seconds: dict[str, np.ndarray]) -> list[Row]:
    """Return the rows from the seconds of each start, one for each round."""
    return [
        {
            "": kind,
            "s": spread(values, whole=True),
            "times the imports": spread(values / seconds[IMPORTS], whole=True),
            "promised at most": PROMISED.get(kind, "-"),
        }
        for kind, values in seconds.items()
    ]


def until(mark: Path, *arguments: object) -> float:
    """Return the seconds from a program's start to the time that it writes to the file `mark`."""
    begun = python(*arguments)
    return float(mark.read_text()) - begun


def whole(*arguments: object, status: int = 0) -> float:
    """Return the seconds from a program's start to its end."""
    return -python(*arguments, status=status) + time.time()
