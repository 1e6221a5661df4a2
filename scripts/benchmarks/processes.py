"""Whole programs in fresh processes: our training, the peer's, the limit, and what else is timed from outside."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from unetseg.errors import Halt

SCRIPTS = Path(__file__).resolve().parent.parent
ENVIRONMENT = {"HF_HUB_OFFLINE": "1", "NO_ALBUMENTATIONS_UPDATE": "1", "WANDB_SILENT": "true"}
"""Nothing here asks the network."""


def python(*arguments: object, status: int = 0, environment: Mapping[str, str] | None = None) -> float:
    """Run Python with these arguments in the checkout; return the time at the start, in seconds since the epoch.

    Raises:
        Halt: the exit status isn't the one expected; the text has the end of the program's error messages.
    """
    begun = time.time()
    path = os.pathsep.join([str(SCRIPTS), str(SCRIPTS.parent), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, *map(str, arguments)],
        cwd=SCRIPTS.parent,
        env={**os.environ, **ENVIRONMENT, **(environment or {}), "PYTHONPATH": path.rstrip(os.pathsep)},
        capture_output=True,
        text=True,
    )
    if done.returncode != status:
        command = " ".join(map(str, arguments))
        raise Halt(f"python {command} ended with {done.returncode}\n{done.stderr[-3000:]}")
    return begun


def training(pets: Path, encoder: str, size: int, batch_size: int, epochs: int, workers: int) -> list[str]:
    """Return the overrides of our training: its defaults, but without what needs a network."""
    return [
        "data=pets",
        f"data.root={pets}",
        f"data.size={size}",
        f"data.batch_size={batch_size}",
        f"data.workers={workers}",
        f"model.encoder={encoder}",
        "model.weights=null",
        f"trainer.max_epochs={epochs}",
        "wandb.mode=offline",
    ]


def ours(overrides: list[str], folder: Path) -> dict[str, Any]:
    """Train with unetseg in the new run folder `folder`; return the summary."""
    python("-m", "unetseg.train", *overrides, f"output={folder.parent}", f"name={folder.name}")
    return json.loads((folder / "summary.json").read_text())


def peer(pets: Path, encoder: str, size: int, batch_size: int, epochs: int, workers: int, file: Path) -> dict[str, Any]:
    """Train with smp's recipe; return its results, which are written to `file`."""
    shape = ("--encoder", encoder, "--size", size, "--batch-size", batch_size, "--epochs", epochs)
    program = SCRIPTS / "peers" / "smp_pets.py"
    python(program, pets, *shape, "--workers", workers, "--weights", "none", "--output", file)
    return json.loads(file.read_text())


def limit(
    encoder: str, size: int, batch_size: int, steps: int, file: Path, environment: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """Take bare training steps; return {images_per_second, peak_memory in bytes}, which is written to `file`."""
    python("-m", "benchmarks.limit", encoder, size, batch_size, steps, file, environment=environment)
    return json.loads(file.read_text())
