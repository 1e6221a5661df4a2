"""A learning rate by trying: the loss over a hundred steps in which the rate rises (Smith 2017)."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lightning.pytorch.tuner import Tuner

from unetseg.data.datamodule import SegmentationData
from unetseg.training import build
from unetseg.training.module import SegmentationModule

STEPS = 100
LOWEST, HIGHEST = 1e-6, 1.0


@dataclass(frozen=True)
class Trial:
    """What the loss did while the learning rate rose.

    Examples:
        >>> Trial([1e-4, 1e-3], [0.7, 0.5], 1e-3).suggestion
        0.001
    """

    lrs: list[float]
    losses: list[float]
    """The running mean after each step; the steps end early where it rises to four times the least."""
    suggestion: float | None
    """The rate at which the loss fell fastest; None where too few steps were taken."""


def try_rates(arguments: dict[str, Any], module: SegmentationModule, data: SegmentationData) -> Trial:
    """Return how the loss followed the rate by Lightning's finder; the module's weights are as before.

    Args:
        arguments: of Lightning's Trainer.
        module: as a training begins.
        data: as of a training.
    """
    endless = arguments | {"max_epochs": -1, "max_steps": -1, "limit_val_batches": 0, "num_sanity_val_steps": 0}
    with tempfile.TemporaryDirectory(prefix="unetseg-lr-") as folder:
        trainer = build.make_trainer(endless, [], [], Path(folder))
        found = Tuner(trainer).lr_find(
            module, data, min_lr=LOWEST, max_lr=HIGHEST, num_training=STEPS, update_attr=False
        )
    assert found is not None
    lrs, losses = found.results["lr"], found.results["loss"]
    length = min(len(lrs), len(losses))
    return Trial(lrs[:length], losses[:length], found.suggestion() if length > 12 else None)
