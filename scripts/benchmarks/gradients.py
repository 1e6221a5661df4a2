"""A training step alone, with our gradient flow read in it, and with wandb.watch(log="gradients"), in turns.

The cost at an interval of n steps is that of one step with a reading and n - 1 without, of which wandb.watch's still
carry its hooks.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable

import numpy as np
import torch
import wandb

from benchmarks.comparison import interleaved, spread, timed
from benchmarks.report import Result, Row, listed
from benchmarks.steps import batch, stepper
from unetseg.gradients import GradientFlow
from unetseg.model import Segmenter

DEFAULT_INTERVAL = 25
"""gradients.every_n_steps in conf/train.yaml."""


def steps(encoder: str, size: int, batch_size: int, rounds: int) -> dict[str, np.ndarray]:
    """Return the seconds of each kind of step, one for each round."""
    torch.manual_seed(0)
    bare, watched = (Segmenter(classes=2, encoder=encoder, weights=None) for _ in range(2))
    images, masks = batch(size, batch_size)
    plain, under_watch = stepper(bare, images, masks), stepper(watched, images, masks)

    def read() -> None:
        with GradientFlow(bare) as flow:
            plain()
        flow.read()

    run = wandb.init(mode="offline", dir=tempfile.mkdtemp(), settings=wandb.Settings(silent=True))
    log_frequency = 2  # every other step: one that only carries the hooks, one that logs
    run.watch(watched, log="gradients", log_freq=log_frequency)
    position = 0

    def watch(logs: bool) -> None:
        """Take a step under wandb.watch that logs or doesn't, as asked."""
        nonlocal position
        position += 1
        assert logs == (position % log_frequency == 0)
        under_watch()
        run.log({"step": position})

    kinds: dict[str, Callable[[], None]] = {
        "step": plain,
        "read": read,
        "watch, hooks only": lambda: watch(False),
        "watch, logging": lambda: watch(True),
    }
    seconds = interleaved({kind: timed(work) for kind, work in kinds.items()}, rounds)
    run.finish()
    return seconds


def extra_cost(seconds: dict[str, np.ndarray], interval: int) -> dict[str, np.ndarray]:
    """Return what reading every `interval` steps adds to a bare step, as a share of it, for each round."""
    step = seconds["step"]
    ours = (seconds["read"] - step) / step / interval
    hooks = (seconds["watch, hooks only"] - step) / step
    theirs = ((seconds["watch, logging"] - step) / step + (interval - 1) * hooks) / interval
    return {"GradientFlow": ours, "wandb.watch": theirs}


def measure(encoder: str, size: int, batch_size: int, rounds: int) -> Result:
    """Return what reading the gradients adds to training."""
    seconds = steps(encoder, size, batch_size, rounds)
    rows: list[Row] = []
    for interval in (1, DEFAULT_INTERVAL):
        cost = extra_cost(seconds, interval)
        rows.append(
            {"extra time of training": f"read every {interval} step{'s' if interval > 1 else ''}"}
            | {f"{who}, %": spread(100 * share) for who, share in cost.items()}
        )
    setting = (
        f"{encoder}, {size} px, batch {batch_size}, concat, {rounds} interleaved rounds, range of the middle half; "
        f"a bare step takes {np.median(seconds['step']):.2f} s"
    )
    return Result(setting, [rows], listed(seconds, "s"))
