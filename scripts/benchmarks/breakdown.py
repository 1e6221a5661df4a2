"""Where the time of our training goes: unetseg.train's own loop under a profiler of Lightning's kind.

python -m benchmarks.breakdown FILE.json OVERRIDE ...     in a process of its own, scripts/ importable

Every moment counts for the innermost action that is under way, so that the rows add up to the seconds behind the
summary's images_per_second: the batches of all epochs but the first of each, without validation.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import wraps
from pathlib import Path
from typing import Any
from unittest.mock import patch

import lightning as L
from lightning.pytorch.profilers import Profiler

from unetseg.evaluation.metrics import SegmentationScores
from unetseg.gradients import GradientFlow
from unetseg.options.compose import compose
from unetseg.options.schema import Train
from unetseg.training import module

WAITING, STEP, METRICS, FLOW, OTHER = "waiting for data", "step", "metrics", "gradient flow", "logging and other"
ROWS = (WAITING, STEP, METRICS, FLOW, OTHER)
VALIDATION = "validation"
BATCH_END = "Cost.on_train_batch_end"
"""The action at whose end unetseg.training.callbacks.Cost has taken a batch's time."""


class Rows(Profiler):
    """Adds up the seconds of each row."""

    def __init__(self) -> None:
        super().__init__()
        self.seconds = dict.fromkeys(ROWS, 0.0)
        self.batches = 0
        self.under_way: list[str] = []
        self.counting = False
        self.since = time.perf_counter()

    def start(self, action_name: str) -> None:
        """Begin an action inside the one under way."""
        self._settle()
        if action_name == VALIDATION:
            self.counting = False
        self.under_way.append(row_of(action_name) or (self.under_way[-1] if self.under_way else OTHER))

    def stop(self, action_name: str) -> None:
        """End the action under way; the end of an epoch's first batch begins the count, as in Cost."""
        self._settle()
        self.under_way.pop()
        if action_name.endswith(BATCH_END):
            self.batches += self.counting
            self.counting = True
        elif action_name == "run_training_epoch":
            self.counting = False

    def wrapped(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """Return the function as an action."""

        @wraps(function)
        def action(*arguments: Any, **named: Any) -> Any:
            with self.profile(name):
                return function(*arguments, **named)

        return action

    def _settle(self) -> None:
        now = time.perf_counter()
        if self.counting:
            self.seconds[self.under_way[-1] if self.under_way else OTHER] += now - self.since
        self.since = now


def row_of(action: str) -> str | None:
    """Return the row of an action of Lightning's or ours; None for what counts for the action around it."""
    if action in ROWS:
        return action
    if action.endswith("train_dataloader_next"):
        return WAITING
    if action == "run_training_batch":
        return STEP
    if "FlowReadings" in action:
        return FLOW
    return OTHER if action.startswith("[Callback]") or ".on_" in action else None


class Watch(L.Callback):
    """Lets `rows` be the Trainer's profiler, and its validation report to it."""

    def __init__(self, rows: Rows):
        self.rows = rows

    def setup(self, trainer: L.Trainer, module: L.LightningModule, stage: str) -> None:
        """Set the profiler before the first batch."""
        trainer.profiler = self.rows
        evaluation = trainer.fit_loop.epoch_loop.val_loop
        if stage == "fit":
            evaluation.run = self.rows.wrapped(VALIDATION, evaluation.run)  # type: ignore[method-assign]


@contextmanager
def watched(rows: Rows) -> Iterator[None]:
    """Let our own parts report to `rows`."""
    hooks = [(GradientFlow, name, FLOW) for name in vars(GradientFlow) if name.startswith("_on_")]
    counting = [
        (module, "class_map", METRICS),
        (module, "image_counts", METRICS),
        (SegmentationScores, "update", METRICS),
    ]
    with ExitStack() as stack:
        for owner, name, row in [*hooks, *counting, (module.SegmentationModule, "log", OTHER)]:
            stack.enter_context(patch.object(owner, name, rows.wrapped(row, getattr(owner, name))))
        yield


def breakdown(overrides: list[str]) -> dict[str, Any]:
    """Train in this process with unetseg.train; return {batches, images_per_second, seconds: {row: seconds}}."""
    from unetseg.train import train

    rows = Rows()
    with watched(rows):
        summary = train(compose("train", Train, overrides), callbacks=[Watch(rows)])
    return {"batches": rows.batches, "images_per_second": summary["images_per_second"], "seconds": rows.seconds}


def main() -> None:
    """Run from the command line."""
    file, *overrides = sys.argv[1:]
    Path(file).write_text(json.dumps(breakdown(overrides)) + "\n")


if __name__ == "__main__":
    main()
