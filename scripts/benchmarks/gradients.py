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
from benchmarks.steps import batch, best_device, stepper
from unetseg.gradients import GradientFlow
from unetseg.model import Segmenter
from unetseg.training.surroundings import freed_memory

FLOW_INTERVAL, EXITS_INTERVAL = 25, 250
"""gradients.every_n_steps and gradients.routes_every_n_steps in conf/train.yaml."""
WHO = ("GradientFlow", "GradientFlow with the exits", "wandb.watch")


def steps(encoder: str, size: int, batch_size: int, rounds: int) -> dict[str, np.ndarray]:
    """Return the seconds of each kind of step, one for each round."""
    torch.manual_seed(0)
    bare, quiet, loud = (Segmenter(classes=2, encoder=encoder, weights=None).to(best_device()) for _ in range(3))
    images, masks = batch(size, batch_size)
    plain = stepper(bare, images, masks)

    def read(routes: bool) -> None:
        with GradientFlow(bare, routes=routes) as flow:
            plain()
        flow.read()

    run = wandb.init(mode="offline", dir=tempfile.mkdtemp(), settings=wandb.Settings(silent=True))
    never = 10**9
    position = 0

    def watched(model: Segmenter, log_frequency: int) -> Callable[[], None]:
        """Return a step of a model that wandb watches."""
        run.watch(model, log="gradients", log_freq=log_frequency)
        take = stepper(model, images, masks)

        def step() -> None:
            nonlocal position
            position += 1
            take()
            run.log({"step": position})

        return step

    kinds: dict[str, Callable[[], None]] = {
        "step": plain,
        "read": lambda: read(False),
        "read, exits": lambda: read(True),
        "watch, hooks only": watched(quiet, never),
        "watch, logging": watched(loud, 1),
    }
    seconds = interleaved({kind: timed(work) for kind, work in kinds.items()}, rounds)
    run.finish()
    return seconds


def extra_cost(seconds: dict[str, np.ndarray]) -> dict[str, dict[str, np.ndarray]]:
    """Return what readings add to a bare step, as a share of it, for each round: by interval and by who reads."""
    step = seconds["step"]
    flow, exits, hooks, logging = ((seconds[kind] - step) / step for kind in list(seconds)[1:])
    costs = {}
    for interval in (1, FLOW_INTERVAL, EXITS_INTERVAL):
        theirs = (logging + (interval - 1) * hooks) / interval
        each = (flow / interval, exits / interval, theirs)
        costs[f"every {interval} step{'s' if interval > 1 else ''}"] = dict(zip(WHO, each, strict=True))
    ours = flow * (1 / FLOW_INTERVAL - 1 / EXITS_INTERVAL) + exits / EXITS_INTERVAL
    costs[f"as set: every {FLOW_INTERVAL}, the exits every {EXITS_INTERVAL}"] = {WHO[1]: ours}
    return costs


@freed_memory()
def measure(encoder: str, size: int, batch_size: int, rounds: int) -> Result:
    """Return what reading the gradients adds to training."""
    seconds = steps(encoder, size, batch_size, rounds)
    rows: list[Row] = [
        {"extra time of training": interval, **dict.fromkeys((f"{who}, %" for who in WHO), "")}
        | {f"{who}, %": spread(100 * share) for who, share in cost.items()}
        for interval, cost in extra_cost(seconds).items()
    ]
    setting = (
        f"{encoder}, {size} px, batch {batch_size}, concat, {rounds} interleaved rounds, range of the middle half; "
        f"a bare step takes {np.median(seconds['step']):.2f} s"
    )
    return Result(setting, [rows], listed(seconds, "s"))
