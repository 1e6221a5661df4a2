"""A learning rate by trying: the loss over a hundred steps in which the rate rises (Smith 2017).

Lightning's own finder is not used: its running mean begins with half of the first loss, and it looks for the steepest
fall over the rate itself and not over its logarithm, which favours the lowest rates.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np

from unetseg.data.datamodule import SegmentationData
from unetseg.training import build
from unetseg.training.module import SegmentationModule

STEPS = 100
LOWEST, HIGHEST = 1e-6, 1.0
SMOOTHING = 0.9
"""Of the running mean of the losses."""
WORSE = 4
"""Times the least mean loss, above which no higher rate is tried."""
WINDOW = 25
"""Steps over which a fall of the loss is measured, and the fewest for a suggestion."""
CERTAIN = 4.0
"""Standard errors of its slope by which a fall stands out of the noise: of 100 losses that are noise alone, it is
found in 1 of 200."""


@dataclass
class RisingRate(L.Callback):
    """Raises the learning rate from step to step by the same factor, and notes the loss of each step.

    Examples:
        >>> RisingRate().rate(0), RisingRate().rate(STEPS - 1)
        (1e-06, 1.0)
    """

    factors: Sequence[float] = (1.0,)
    """What the rate is multiplied by for each group of weights."""
    lrs: list[float] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)

    def rate(self, step: int) -> float:
        """Return the learning rate of a step, from 0."""
        return LOWEST * (HIGHEST / LOWEST) ** (step / (STEPS - 1))

    def on_train_batch_start(self, trainer: L.Trainer, module: L.LightningModule, batch: Any, batch_idx: int) -> None:
        """Set the rate of all weights."""
        for group, factor in zip(trainer.optimizers[0].param_groups, self.factors, strict=True):
            group["lr"] = factor * self.rate(len(self.lrs))

    def on_train_batch_end(
        self, trainer: L.Trainer, module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Note the loss; end where it is none, or far above the least."""
        loss = outputs["loss"].item() if outputs else math.nan
        self.lrs.append(self.rate(len(self.lrs)))
        self.losses.append(loss)
        mean = running_mean(self.losses)
        trainer.should_stop = not math.isfinite(loss) or mean[-1] > WORSE * min(mean)


def try_rates(arguments: dict[str, Any], module: SegmentationModule, data: SegmentationData) -> RisingRate:
    """Train for a hundred steps with a rising rate; return the rates and the losses.

    Args:
        arguments: of Lightning's Trainer.
        module: as a training begins; its weights are changed.
        data: as of a training.
    """
    own = {"max_epochs": -1, "max_steps": STEPS, "limit_val_batches": 0, "accumulate_grad_batches": 1}
    rising = RisingRate(module.optimization.lr_factors)
    with tempfile.TemporaryDirectory(prefix="unetseg-lr-") as folder:
        build.make_trainer(arguments | own, [], [rising], Path(folder)).fit(module, data)
    return rising


def running_mean(losses: Sequence[float]) -> list[float]:
    """Return the exponential running mean of losses, without the bias of its beginning (Kingma and Ba 2015)."""
    means, mean = [], 0.0
    for count, loss in enumerate(losses, start=1):
        mean = SMOOTHING * mean + (1 - SMOOTHING) * loss
        means.append(mean / (1 - SMOOTHING**count))
    return means


def suggest(lrs: Sequence[float], losses: Sequence[float]) -> float | None:
    """Return the rate at which the loss fell fastest over the rate's logarithm; None where no fall is certain.

    It is the middle of the steepest of the lines that are fitted to WINDOW steps each, up to the least running mean:
    a loss that has jumped up falls again, and says nothing.
    """
    mean = np.array(running_mean(losses))
    mean = mean[np.isfinite(mean)]
    if len(mean) < WINDOW:
        return None
    x, y = (
        np.lib.stride_tricks.sliding_window_view(values[: max(int(mean.argmin()) + 1, WINDOW)], WINDOW)
        for values in (np.log(lrs), np.array(losses))
    )
    x, y = (values - values.mean(1, keepdims=True) for values in (x, y))
    spread = (x**2).sum(1)
    slope = (x * y).sum(1) / spread
    error = np.sqrt(((y - slope[:, None] * x) ** 2).sum(1) / (WINDOW - 2) / spread)
    certain = np.where(slope < -CERTAIN * error, slope, 0.0)
    steepest = int(certain.argmin())
    return float(np.exp(np.log(lrs)[steepest : steepest + WINDOW].mean())) if certain[steepest] < 0 else None
