"""Training's speed: the limit, ours, and the peer, each in a fresh process, in turns and on the same files.

The limit is forward, backward and optimizer on one resident batch. Ours is unetseg.train with its defaults:
augmentation, metrics, gradient flow, W&B offline. The peer is smp's recipe (peers/smp_pets.py). Ours leaves the first
batch of every epoch out of its speed, the peer the first of the run: with one epoch both leave out the same. With
crops ours reads whole pictures and cuts one crop of each; the peer has none, and sits out.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import numpy as np

from benchmarks import processes
from benchmarks.comparison import interleaved, spread
from benchmarks.pictures import link_pets
from benchmarks.report import Result, Row, listed

STEPS = 26
"""Of an epoch: the gradient flow is read every 25 steps, so exactly one of the 25 steps that count has a reading."""


def measure(
    pets: Path,
    encoder: str,
    size: int,
    batch_size: int,
    steps: int,
    epochs: int,
    workers: int,
    cache: str,
    rounds: int,
    crop: int = 0,
) -> Result:
    """Return the images/s of all, their ratios, and where ours' time goes."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        root = link_pets(pets, folder / "pets", train_images=steps * batch_size)
        shape = (encoder, crop or size, batch_size)
        overrides = [*processes.training(root, *shape, epochs, workers), f"data.cache={cache}"]
        if crop:
            overrides += [f"data.crop={crop}", "data.crops=1"]
        turns = iter(range(rounds))
        kinds = {
            "limit": lambda: processes.limit(*shape, (steps - 1) * epochs, folder / "limit.json"),
            "ours": lambda: processes.ours(overrides, folder / f"run{next(turns)}"),
        }
        if not crop:
            kinds["peer"] = lambda: processes.peer(root, *shape, epochs, workers, folder / "peer.json")
        # bound early: each function returns one number
        speeds = {kind: (lambda run=run: run()["images_per_second"]) for kind, run in kinds.items()}
        measured = interleaved(speeds, rounds, warm_up=0)
        file = folder / "breakdown.json"
        processes.python("-m", "benchmarks.breakdown", file, *overrides, f"output={folder}", "name=breakdown")
        parts = json.loads(file.read_text())
    side = f"crops of {crop}" if crop else size
    setting = (
        f"{encoder}, {side} px, batch {batch_size}, {workers} workers, {steps} steps an epoch, epochs {epochs}, "
        f"data.cache={cache}, {rounds} interleaved rounds, range of all rounds; the second table is of one further run "
        "of ours"
    )
    return Result(setting, [comparison(measured), shares(parts)], listed(measured, "images/s"))


def comparison(speeds: dict[str, np.ndarray]) -> list[Row]:
    """Return the rows of the limit, ours and the peer, if there is one, from their images/s, one for each round."""
    others = [other for other in ("limit", "peer") if other in speeds]
    return [
        {"": kind, "images/s": spread(values, whole=True)}
        | {f"times the {other}": spread(values / speeds[other], whole=True) for other in others}
        for kind, values in speeds.items()
    ]


def shares(parts: dict) -> list[Row]:
    """Return the rows of what breakdown() found: where the time of ours' training loop goes."""
    total = sum(parts["seconds"].values())
    return [
        {"ours": row, "ms a step": 1000 * seconds / parts["batches"], "% of the time": 100 * seconds / total}
        for row, seconds in parts["seconds"].items()
    ]
